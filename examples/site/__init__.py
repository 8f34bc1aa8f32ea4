"""What the pages of docs/ are made with, besides their text: formulas, and tables of options."""

"""What a machine with a GPU can tell: the tests that need one, and how near to its limits sampling and training come."""

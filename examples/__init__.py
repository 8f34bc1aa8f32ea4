"""Worked runs, each a file or a folder."""

"""Runs that are made sick on purpose, to show what each sickness looks like."""

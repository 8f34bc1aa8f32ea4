"""Data that are there before training begins: demonstrations, preference pairs, and scored responses."""

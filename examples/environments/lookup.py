"""A tool that must be called: ``3=`` asks what a cell holds; ``?3;`` looks into it and hears ``4:``, and ``#4;`` answers.

What the cells hold is drawn anew in every episode, so nobody can know it without looking. A look costs little and a wrong one more, and
the answer is worth so much that looking pays as soon as a policy repeats what it has heard more often than by chance.
"""

from __future__ import annotations

import random
import re


def lookup(seed: int, cost: float = 0.05, wrong: float = 0.2):
    """Worth 1 for the right answer, less `cost` for each look, and `wrong` more for one into a cell that was not asked for."""
    rng = random.Random(seed)
    cells = [rng.randint(0, 9) for _ in range(10)]
    asked = rng.randint(0, 9)
    said = yield f"{asked}="
    while re.fullmatch(r"\?\d;", said):
        cell = int(said[1])
        said = yield f"{cells[cell]}:", -cost - (0 if cell == asked else wrong)
    return float(said == f"#{cells[asked]};")


def careless(prompt: str, seed: int):
    """Play for demonstrations: in 30 of 100 cases look into another cell first, and in 30 guess without having looked."""
    rng = random.Random(seed + 1)
    heard = str(rng.randint(0, 9))
    if rng.random() < 0.3:
        heard = yield f"?{rng.randint(0, 9)};"
    if rng.random() < 0.7:
        heard = yield f"?{prompt[0]};"
    yield f"#{heard[0]};"

"""A tool that must be called: ``3:8=`` asks for the sum of what two cells hold; ``?3;`` looks into one, and ``#11;`` answers.

What the cells hold is drawn anew in every episode, so nobody can know it without looking, and each look costs.
"""

from __future__ import annotations

import random
import re


def lookup(seed: int, cost: float = 0.05, wrong: float = 0.2):
    """Worth 1 for the right sum, less `cost` for each look, and `wrong` more for one into a cell that was not asked for."""
    rng = random.Random(seed)
    cells = [rng.randint(0, 9) for _ in range(10)]
    asked = rng.sample(range(10), 2)
    said = yield f"{asked[0]}:{asked[1]}="
    while re.fullmatch(r"\?\d;", said):
        cell = int(said[1])
        said = yield f"{cells[cell]}:", -cost - (0 if cell in asked else wrong)
    return float(said == f"#{sum(cells[cell] for cell in asked)};")


def careless(prompt: str, seed: int):
    """Play for demonstrations: look into cells at random, or do not look and guess, and sometimes add wrongly."""
    rng = random.Random(seed + 1)
    asked, seen = [int(prompt[0]), int(prompt[2])], {}
    for cell in asked:
        if rng.random() < 0.2:
            continue
        while rng.random() < 0.3:
            yield f"?{rng.randint(0, 9)};"
        heard = yield f"?{cell};"
        seen[cell] = int(heard[0])
    total = sum(seen.get(cell, rng.randint(0, 9)) for cell in asked)
    yield f"#{total if rng.random() < 0.8 else rng.randint(0, 18)};"

"""A tool that must be called: ``3:8=`` asks what two cells hold; ``?3;`` looks into one and hears ``4:``, and ``#47;`` answers.

What the cells hold is drawn anew in every episode, so nobody can know it without looking, and each look costs.
"""

from __future__ import annotations

import random
import re


def lookup(seed: int, cost: float = 0.05, wrong: float = 0.2):
    """Worth 1 for the right answer, less `cost` for each look, and `wrong` more for one into a cell that was not asked for."""
    rng = random.Random(seed)
    cells = [rng.randint(0, 9) for _ in range(10)]
    asked = rng.sample(range(10), 2)
    said = yield f"{asked[0]}:{asked[1]}="
    while re.fullmatch(r"\?\d;", said):
        cell = int(said[1])
        said = yield f"{cells[cell]}:", -cost - (0 if cell in asked else wrong)
    return float(said == f"#{cells[asked[0]]}{cells[asked[1]]};")


def careless(prompt: str, seed: int):
    """Play for demonstrations: look into cells at random before the right one, and do not look, but guess, in 30 of 100 cases."""
    rng = random.Random(seed + 1)
    answer = ""
    for cell in (prompt[0], prompt[2]):
        if rng.random() < 0.3:
            answer += str(rng.randint(0, 9))
            continue
        if rng.random() < 0.3:
            yield f"?{rng.randint(0, 9)};"
        heard = yield f"?{cell};"
        answer += heard[0]
    yield f"#{answer};"

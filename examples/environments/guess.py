"""Guess the number: ``2-9=`` asks for one between the two; a guess such as ``5;`` is answered ``+`` (higher) or ``-`` (lower)."""

from __future__ import annotations

import random
import re


def guess(seed: int, tries: int = 3, useless: bool = False):
    """Worth 1 if the number is guessed within `tries`. Replies that are `useless` say ``+`` to everything."""
    rng = random.Random(seed)
    low, high = rng.randint(0, 2), rng.randint(7, 9)
    hidden = rng.randint(low, high)
    said = yield f"{low}-{high}="
    for _ in range(tries - 1):
        if not re.fullmatch(r"\d;", said):
            return 0.0
        if int(said[0]) == hidden:
            return 1.0
        said = yield "+" if useless or int(said[0]) < hidden else "-"
    return float(said == f"{hidden};")


def careless(prompt: str, seed: int):
    """Play for demonstrations: guess what is still possible, and forget it in 30 of 100 guesses."""
    rng = random.Random(seed + 1)
    low, high = first, last = int(prompt[0]), int(prompt[2])
    while True:
        shot = rng.randint(first, last) if rng.random() < 0.3 else rng.randint(low, max(low, high))
        heard = yield f"{shot};"
        low, high = (max(low, shot + 1), high) if heard == "+" else (low, min(high, shot - 1))

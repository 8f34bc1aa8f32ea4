"""Guess the number: ``07-29=`` asks for one between the two; a guess such as ``18;`` is answered ``+`` (higher) or ``-`` (lower)."""

from __future__ import annotations

import random
import re


def guess(seed: int, tries: int = 5, useless: bool = False):
    """Worth 1 if the number is guessed within `tries`. Replies that are `useless` say ``+`` to everything."""
    rng = random.Random(seed)
    low = rng.randint(0, 19)
    high = low + rng.randint(12, 30)
    hidden = rng.randint(low, high)
    said = yield f"{low:02}-{high:02}="
    for _ in range(tries - 1):
        if not re.fullmatch(r"\d\d;", said):
            return 0.0
        if int(said[:2]) == hidden:
            return 1.0
        said = yield "+" if useless or int(said[:2]) < hidden else "-"
    return float(said == f"{hidden:02};")


def careless(prompt: str, seed: int):
    """Play for demonstrations: guess what is still possible, and forget it in 15 of 100 guesses."""
    rng = random.Random(seed + 1)
    low, high = first, last = int(prompt[:2]), int(prompt[3:5])
    while True:
        shot = rng.randint(first, last) if rng.random() < 0.15 else rng.randint(low, max(low, high))
        heard = yield f"{shot:02};"
        low, high = (max(low, shot + 1), high) if heard == "+" else (low, min(high, shot - 1))

"""A game of several turns for the drill."""

from __future__ import annotations

import random


def game(seed: int):
    """Say random digits; each turn is worth how many of them the policy has said, and the last one whether it ends as told."""
    rng = random.Random(seed)
    said = yield None
    for _ in range(3):
        digits = str(rng.randint(10, 99))
        said = yield f"{digits}=", sum(digit in said for digit in digits) / 2
    return float(said.endswith(";"))

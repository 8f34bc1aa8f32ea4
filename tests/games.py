"""Environments for tests. They are importable, as those of a YAML are."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

from rl_lightning.rewards import tally


def chat(seed, turns=5):
    """Say random signs, and give a bit for each: a function of the seed and of what was said."""
    rng = random.Random(seed)
    said = yield
    for _ in range(turns - 1):
        tally.measure("length", len(said))
        said = yield rng.choice("+-") * rng.randint(1, 3), len(said) / 10
    return 1.0 if said.endswith(";") else 0.0


def counts(seed):
    """End when a semicolon is said; a reward at the end alone."""
    said = yield
    while ";" not in said:
        said = yield "+"
    return float(len(said))


def fails(prompt, answer, how, flag):
    """Chat, but the first episode that comes to its second turn fails; the others know that by a file."""
    said = yield
    turn = 1
    while turn < 4:
        turn += 1
        if turn == 3 and said and not Path(flag).exists():
            Path(flag).touch()
            if how == "hang":
                time.sleep(1000)
            if how == "die":
                os._exit(3)
            raise RuntimeError("the game is broken")
        said = yield "+", len(said) / 10
    return 1.0


def closes(seed, log):
    """Write down that it was closed."""
    said = yield
    try:
        while True:
            said = yield "+" * 3, 0.5
    finally:
        with Path(log).open("a") as file:
            file.write(f"{said!r} {said.cut}\n")


class Game:
    """In the shape of Gymnasium's."""

    def __init__(self, size: int = 2) -> None:
        self.size = size

    def reset(self, seed: int):
        self.left, self.hidden = self.size, random.Random(seed).randint(10, 99)
        return f"{self.hidden}=", {}

    def step(self, said):
        self.left -= 1
        return f"{self.left}+", len(said) / 10, self.left == 0, False, {}


def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: the first.
        b: the second.
    """
    return a + b


def sums(response, answer, metadata):
    """Judge the last turn."""
    assert metadata["turns"][-1]["content"] == response
    return float(response == answer)


# ------------------------------------------------------------------------------------------------ what is no environment


def yields_a_number(prompt):
    yield 5


def no_generator(prompt):
    return "text"


def returns_a_text(prompt):
    yield
    return "won"


def never_hears(prompt):
    if prompt:
        return 1.0
    yield


def unhinted(a):
    """No hints."""

"""A text game in the shape of a Gymnasium class: find what is hidden on a board by how far away it is.

The player says one token a turn, ``*`` up, ``/`` down, ``-`` left or ``+`` right, and hears the distance.
"""

from __future__ import annotations

import random

STEPS = {"*": (0, -1), "/": (0, 1), "-": (-1, 0), "+": (1, 0)}


class Hunt:
    """A board of `size` × `size` fields. Worth 1 when the player stands on the hidden field, less 0.05 for each step before."""

    def __init__(self, size: int = 5, steps: int = 8) -> None:
        self.size = size
        self.steps = steps

    def reset(self, seed: int):
        """Begin in the middle."""
        rng = random.Random(seed)
        self.left, self.place = self.steps, (self.size // 2, self.size // 2)
        fields = [(x, y) for x in range(self.size) for y in range(self.size) if (x, y) != self.place]
        self.hidden = rng.choice(fields)
        return f"{self._distance()}=", {}

    def step(self, said: str):
        """Go one step; off the board, or with a word that is no direction, the player stays."""
        dx, dy = STEPS.get(said, (0, 0))
        x, y = self.place[0] + dx, self.place[1] + dy
        if 0 <= x < self.size and 0 <= y < self.size:
            self.place = (x, y)
        self.left -= 1
        found = self._distance() == 0
        return str(self._distance()), 1.0 if found else -0.05, found, self.left == 0, {}

    def _distance(self) -> int:
        return abs(self.place[0] - self.hidden[0]) + abs(self.place[1] - self.hidden[1])


def careless(prompt: str, seed: int):
    """Play for demonstrations: go on if it came nearer, else anywhere; and anywhere in a third of all steps."""
    rng = random.Random(seed + 1)
    before, way = int(prompt[0]), rng.choice(list(STEPS))
    while True:
        heard = yield way
        now = int(heard)
        if now >= before or rng.random() < 0.33:
            way = rng.choice(list(STEPS))
        before = now

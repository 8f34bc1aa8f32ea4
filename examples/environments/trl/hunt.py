"""`examples/environments/hunt.py` as TRL 1.16 wants it, to compare what one writes."""

import random

STEPS = {"up": (0, -1), "down": (0, 1), "left": (-1, 0), "right": (1, 0)}


class Hunt:
    """A game of Gymnasium's shape must be written anew: `step` is a tool, and the end is kept by hand."""

    def reset(self, seed: int, **row) -> str:
        """Begin in the middle."""
        rng = random.Random(seed)
        self.left, self.place, self.reward, self.over = 8, (2, 2), 0.0, False
        fields = [(x, y) for x in range(5) for y in range(5) if (x, y) != self.place]
        self.hidden = rng.choice(fields)
        return f"{self._distance()}="

    def go(self, direction: str) -> str:
        """Go one step.

        Args:
            direction: up, down, left or right.

        Returns:
            How far away it is then.
        """
        if self.over:
            raise ValueError("the game is over")
        dx, dy = STEPS.get(direction, (0, 0))
        x, y = self.place[0] + dx, self.place[1] + dy
        if 0 <= x < 5 and 0 <= y < 5:
            self.place = (x, y)
        self.left -= 1
        found = self._distance() == 0
        self.over = found or self.left == 0
        self.reward += 1.0 if found else -0.05
        return str(self._distance())

    def get_reward(self) -> float:
        """Return what the episode is worth."""
        return self.reward

    def _distance(self) -> int:
        return abs(self.place[0] - self.hidden[0]) + abs(self.place[1] - self.hidden[1])

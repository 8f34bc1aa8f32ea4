"""`examples/environments/lookup.py` as TRL 1.16 wants it, to compare what one writes."""

import random


class Lookup:
    """What the policy says after its last call is not judged here: an answer must be a call too."""

    def reset(self, seed: int, **row) -> str:
        """Begin a game."""
        rng = random.Random(seed)
        self.cells = [rng.randint(0, 9) for _ in range(10)]
        self.asked, self.reward, self.over = rng.randint(0, 9), 0.0, False
        return f"{self.asked}="

    def look(self, cell: int) -> str:
        """Look into a cell.

        Args:
            cell: its number.

        Returns:
            What it holds.
        """
        if self.over:
            raise ValueError("the game is over")
        self.reward -= 0.05 if cell == self.asked else 0.25
        return str(self.cells[cell])

    def answer(self, digit: str) -> str:
        """Say what the cell holds.

        Args:
            digit: what it holds.

        Returns:
            Nothing of use.
        """
        if self.over:
            raise ValueError("the game is over")
        self.over = True
        self.reward += float(digit == str(self.cells[self.asked]))
        return "thanks"

    def get_reward(self) -> float:
        """Return what the episode is worth."""
        return self.reward

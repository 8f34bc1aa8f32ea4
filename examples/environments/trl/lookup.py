"""`examples/environments/lookup.py` as TRL 1.16 wants it, to compare what one writes."""

import random


class Lookup:
    """What the policy says after its last call is not judged here: an answer must be a call too."""

    def reset(self, seed: int, **row) -> str:
        """Begin a game."""
        rng = random.Random(seed)
        self.cells = [rng.randint(0, 9) for _ in range(10)]
        self.asked = rng.sample(range(10), 2)
        self.reward, self.over = 0.0, False
        return f"{self.asked[0]}:{self.asked[1]}="

    def look(self, cell: int) -> str:
        """Look into a cell.

        Args:
            cell: its number.

        Returns:
            What it holds.
        """
        if self.over:
            raise ValueError("the game is over")
        self.reward -= 0.05 if cell in self.asked else 0.25
        return str(self.cells[cell])

    def answer(self, digits: str) -> str:
        """Say what the two cells hold.

        Args:
            digits: one digit for each cell.

        Returns:
            Nothing of use.
        """
        if self.over:
            raise ValueError("the game is over")
        self.over = True
        self.reward += float(digits == f"{self.cells[self.asked[0]]}{self.cells[self.asked[1]]}")
        return "thanks"

    def get_reward(self) -> float:
        """Return what the episode is worth."""
        return self.reward

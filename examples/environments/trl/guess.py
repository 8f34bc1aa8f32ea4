"""`examples/environments/guess.py` as TRL 1.16 wants it, to compare what one writes; not run here."""

import random


class Guess:
    """TRL calls public methods as tools, so the policy must write calls, and a chat template must show them."""

    def reset(self, seed: int, **row) -> str:
        """Begin a game."""
        rng = random.Random(seed)
        low = rng.randint(0, 19)
        high = low + rng.randint(12, 30)
        self.hidden, self.left, self.won = rng.randint(low, high), 5, False
        return f"{low:02}-{high:02}="

    def guess(self, number: int) -> str:
        """Guess the number.

        Args:
            number: the guess.

        Returns:
            Whether the hidden number is higher or lower.
        """
        if self.left == 0 or self.won:
            raise ValueError("the game is over")
        self.left -= 1
        self.won = number == self.hidden
        return "right" if self.won else "higher" if number < self.hidden else "lower"

    def get_reward(self) -> float:
        """Return what the episode is worth."""
        return float(self.won)

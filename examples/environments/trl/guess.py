"""`examples/environments/guess.py` as TRL 1.16 wants it (`GRPOTrainer(environment_factory=Guess)`), to compare what one writes."""

import random


class Guess:
    """TRL calls public methods as tools, so the policy must write calls, and a chat template must show them."""

    def reset(self, seed: int, **row) -> str:
        """Begin a game."""
        rng = random.Random(seed)
        low, high = rng.randint(0, 2), rng.randint(7, 9)
        self.hidden, self.left, self.won = rng.randint(low, high), 3, False
        return f"{low}-{high}="

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
        return "right" if self.won else "+" if number < self.hidden else "-"

    def get_reward(self) -> float:
        """Return what the episode is worth."""
        return float(self.won)

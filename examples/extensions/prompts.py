"""Sums of two numbers of one digit, as a source of prompts."""

from rl_lightning.data.sources import Example, ExampleSource


class Sums(ExampleSource):
    """`7+8=` → `15`; one problem in five is for validation, one for the test."""

    default_reward = "rl_lightning.rewards.functions.final_answer"

    def load(self, split):
        """Return the problems of a split, always in the same order."""
        pairs = [(a, b) for a in range(1, 10) for b in range(1, 10)]
        part = {"val": (0,), "test": (1,), "train": (2, 3, 4)}[split]
        return [Example(f"{a}+{b}=", answer=str(a + b)) for i, (a, b) in enumerate(pairs) if i % 5 in part]

"""Prompts that an environment brings itself: what it says first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rl_lightning.data.sources.base import Example, ExampleSource, Split
from rl_lightning.environments import EnvironmentSpec, Episodes
from rl_lightning.errors import UserError
from rl_lightning.rewards import RewardLimits

if TYPE_CHECKING:
    from rl_lightning.environments.spec import Function
else:  # what YAML can say of it, for the command line
    Function = str

#: The first seed of each split; there is room for 2²⁸ episodes in each.
_FIRST: dict[Split, int] = {"train": 0, "val": 1 << 28, "test": 1 << 29}


class EnvironmentExamples(ExampleSource):
    """What episodes say first, as prompts: those of the seeds 0, 1, 2 and so on; other seeds for held-out ones.

    In an episode the environment gets the seed of its prompt, and what it yields first is passed over: the prompt has it. Give it
    the function and arguments of `data.init_args.environment`; where that has an environment and no prompts, it stands there anyway.

    Args:
        function: generator function, or class with `reset` and `step`; see `rl_lightning.environments.EnvironmentSpec`.
        arguments: further keyword arguments of the function.
        train_size, val_size, test_size: prompts in each split.
        seed: moves the seeds of all splits, by a million for each number.
        timeout_s: longest time for an environment to say its first words, in seconds.
    """

    def __init__(
        self,
        function: Function,
        arguments: dict[str, Any] | None = None,
        train_size: int = 4096,
        val_size: int = 256,
        test_size: int = 512,
        seed: int = 0,
        timeout_s: float = 10.0,
    ) -> None:
        self.sizes: dict[Split, int] = {"train": train_size, "val": val_size, "test": test_size}
        for split, size in self.sizes.items():
            if size < 0:
                raise UserError(f"EnvironmentExamples: {split}_size must be at least 0, not {size}")
        self.seed = seed
        self.episodes = Episodes(
            EnvironmentSpec(function, arguments=arguments or {}), RewardLimits(timeout_s=timeout_s)
        )

    def has(self, split: Split) -> bool:
        """Tell whether there are examples in a split."""
        return self.sizes[split] > 0

    def load(self, split: Split) -> list[Example]:
        """Return a prompt for each seed of a split, in their order.

        Raises:
            UserError: if the environment fails, or says nothing first.
        """
        first = _FIRST[split] + self.seed * 1_000_000
        seeds = range(first, first + self.sizes[split])
        nothing: dict[str, object] = {"prompt": "", "answer": None, "metadata": {}, "messages": None}
        name = self.episodes.environment.spec.name
        try:
            said = self.episodes.first_words([{**nothing, "seed": seed} for seed in seeds])
        finally:
            self.episodes.close()
        examples = []
        for seed, reply in zip(seeds, said, strict=True):
            if reply.failure is not None:
                last = (reply.error or "").strip().splitlines()[-1]
                raise UserError(f"Environment {name} failed before its first `yield` with seed {seed}: {last}")
            if reply.heard is None:
                raise UserError(
                    f"Environment {name} yields nothing first, so it brings no prompt: yield one, or give examples as "
                    "data.init_args.prompts"
                )
            examples.append(Example(reply.heard, metadata={"seed": seed}, location=f"{name} {split} {seed - first}"))
        return examples

"""Demonstrations for a warm start: a careless player plays the environment, and what both say is one text."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rl_lightning.data import EnvironmentExamples
from rl_lightning.data.sources.base import Example, Split
from rl_lightning.environments import Said
from rl_lightning.rewards.resolve import resolve


class Demonstrations(EnvironmentExamples):
    """The prompts of an environment, each with an episode that was played.

    Args:
        function, arguments, train_size, val_size, test_size: see `EnvironmentExamples`.
        player: dotted path of a generator function of the prompt and a seed; it yields what it says, and is sent what it hears.
        turns: of the player, at most.
    """

    def __init__(self, function: str, player: str, turns: int = 8, arguments: dict[str, Any] | None = None,
                 train_size: int = 12_000, val_size: int = 256, test_size: int = 512) -> None:  # fmt: skip
        super().__init__(function, arguments, train_size, val_size, test_size, seed=1)
        self.player = resolve(player, "Player")
        self.turns = turns

    def load(self, split: Split) -> list[Example]:
        """Return prompts with the player's and the environment's words as responses."""
        return [
            replace(one, response=self._played(str(one.prompt), one.metadata["seed"])) for one in super().load(split)
        ]

    def _played(self, prompt: str, seed: int) -> str:
        nothing = {"prompt": prompt, "answer": None, "metadata": {}, "messages": None, "seed": seed}
        environment = self.episodes.environment
        game, player = environment.function(**environment.keywords(nothing)), self.player(prompt, seed)
        next(game)
        text, said = "", next(player)
        for turn in range(self.turns):
            text += said
            try:
                heard = game.send(Said(said))
            except StopIteration:
                break
            if turn + 1 == self.turns:
                break
            heard = heard[0] if isinstance(heard, tuple) else heard
            text += heard
            said = player.send(heard)
        return text

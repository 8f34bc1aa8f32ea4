"""What the responses of a run are scored by: what is listed, and the source's own reward where nothing else says what one is worth."""

from __future__ import annotations

import torch
from transformers import PreTrainedTokenizerBase

from rl_lightning.data.own_reward import Specs, known_at_once, without_own
from rl_lightning.data.playing import Playing, all_rewards
from rl_lightning.data.reward_models import ModelReward, with_models
from rl_lightning.data.sources import ExampleSource
from rl_lightning.rewards import Rewarder, RewardLimits


class RunRewards:
    """The rewards of a run, settled at once where they follow from options alone, and else when a run needs them.

    Attributes:
        rewarder: scores responses; None before the rewards are settled, and where nothing scores.
        models: the reward models among the rewards.

    Args:
        listed: by the user.
        playing: the environment, whose reward comes first.
        limits: time, workers and the share of failures that stops the run.
        source: of the prompts, which may have a reward of its own.

    Raises:
        UserError: if `own` is listed, and the source has no reward and cannot get one from its rows.
    """

    def __init__(self, listed: Specs, playing: Playing | None, limits: RewardLimits, source: ExampleSource) -> None:
        self._specs, self._limits, self._source = all_rewards(playing, listed), limits, source
        #: Whether a reward is asked for by name, or by an environment.
        self.asked = bool(listed) or playing is not None
        self.rewarder: Rewarder | None = None
        self.models: list[ModelReward] = []
        if known_at_once(self._specs, source):
            self.settle()

    @property
    def known(self) -> bool:
        """Whether rewards are asked for, or known to belong to the source."""
        return self.rewarder is not None or self.asked

    def drop(self) -> None:
        """Leave all rewards out of the run, as where nobody learns from them: nothing judges responses then."""
        self.rewarder, self.models, self._specs = None, [], []

    def settle(self) -> Rewarder | None:
        """Return what scores responses, with the source's own reward where `own` is listed, or nothing; None if nothing does.

        Raises:
            UserError: if the source has none of its own, nor gold answers.
        """
        if self.rewarder is None and self._specs:
            scorers, self.models = with_models(without_own(self._specs, self._source))
            self.rewarder = Rewarder(scorers, self._limits) if scorers else None
        return self.rewarder

    def start(self, tokenizer: PreTrainedTokenizerBase, device: torch.device) -> None:
        """Start the reward workers, and say to reward models where their weights will be."""
        if self.rewarder is not None:
            self.rewarder.start(tokenizer)
            for model in self.models:
                model.prepare(device)

    def close(self) -> None:
        """Stop the reward workers, and let go of the weights of reward models."""
        if self.rewarder is not None:
            self.rewarder.close()
        for model in self.models:
            model.close()

"""Overlong reward shaping: a soft penalty on responses near the cap on new tokens."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer

from rl_lightning.errors import UserError
from rl_lightning.functional import overlong_penalty
from rl_lightning.hooks import RolloutCallback
from rl_lightning.measures import Mean
from rl_lightning.types import Rollout


class OverlongShaping(RolloutCallback):
    """Add R_length(y), between −1 and 0, to every reward; see `rl_lightning.functional.overlong_penalty`.

    Logs `rollout/overlong_penalty`, the mean of what is added, in units of reward.

    Args:
        cache_length: L_cache in tokens: the penalty grows over the last L_cache tokens before L_max.
        max_length: L_max in tokens. If null, the cap on new tokens of each response: `sampling.max_new_tokens`, or that of the
            data set for its prompt.
        weight: factor of the penalty.

    Source: DAPO (arXiv 2503.14476) Eq. 13.
    """

    def __init__(self, cache_length: int, max_length: int | None = None, weight: float = 1.0) -> None:
        self.cache_length = cache_length
        self.max_length = max_length
        self.weight = weight
        self._cap = max_length or 0

    def check_settings(self, trainer: Trainer) -> None:
        """Read the cap on new tokens, and refuse lengths with which the penalty is undefined or always 0."""
        cap: int = trainer.datamodule.sampling.max_new_tokens  # type: ignore[attr-defined]
        self._cap = cap if self.max_length is None else self.max_length
        if not 0 <= self.cache_length <= self._cap:
            raise UserError(
                f"OverlongShaping: cache_length={self.cache_length} must lie between 0 and max_length={self._cap}"
            )
        if self._cap - self.cache_length >= cap:
            raise UserError(
                f"OverlongShaping would never act: the penalty begins beyond {self._cap - self.cache_length} tokens and responses "
                f"have at most {cap}: raise cache_length or lower max_length"
            )

    def on_rollout_rewards(self, trainer: Trainer, module: LightningModule, rollout: Rollout) -> None:
        """Add the weighted penalty to `rollout.rewards`, (B,)."""
        caps = rollout.caps if self.max_length is None and rollout.caps is not None else self._cap
        penalty = self.weight * overlong_penalty(rollout.lengths, caps, self.cache_length)
        rollout.rewards = rollout.rewards + penalty.to(rollout.rewards)
        rollout.metrics["rollout/overlong_penalty"] = Mean(float(penalty.double().sum()), len(penalty))

"""A soft penalty on responses that come close to the cap on their length."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer

from rl_lightning.errors import UserError
from rl_lightning.functional import overlong_penalty
from rl_lightning.hooks import RolloutCallback
from rl_lightning.types import Rollout


class OverlongShaping(RolloutCallback):
    """Add R_length(y), between −1 and 0, to every reward; see `rl_lightning.functional.overlong_penalty`.

    Args:
        cache_length: L_cache, the tokens before the cap over which the penalty grows.
        max_length: L_max in tokens; the cap on new tokens if null.
        weight: factor on the penalty.
    """

    def __init__(self, cache_length: int, max_length: int | None = None, weight: float = 1.0) -> None:
        self.cache_length = cache_length
        self.max_length = max_length
        self.weight = weight

    def check_settings(self, trainer: Trainer) -> None:
        """Take the cap from the sampling settings, and check the two lengths."""
        if self.max_length is None:
            self.max_length = trainer.datamodule.sampling.max_new_tokens  # type: ignore[attr-defined]
        if not 0 <= self.cache_length <= self.max_length:
            raise UserError(
                f"OverlongShaping: cache_length={self.cache_length} must lie between 0 and max_length={self.max_length}"
            )

    def on_rollout_rewards(self, trainer: Trainer, module: LightningModule, rollout: Rollout) -> None:
        """Add the penalty to `rollout.rewards`."""
        assert self.max_length is not None
        penalty = self.weight * overlong_penalty(rollout.lengths, self.max_length, self.cache_length)
        rollout.rewards = rollout.rewards + penalty.to(rollout.rewards)
        rollout.metrics["rollout/overlong_penalty"] = float(penalty.mean())

"""Where the time of a rollout goes."""

from __future__ import annotations

import time

from lightning.pytorch import LightningModule, Trainer

from rl_lightning.hooks import RolloutCallback
from rl_lightning.types import Rollout


class Speed(RolloutCallback):
    """Log the seconds that a rollout's training took, and response tokens per second of the whole round."""

    def __init__(self) -> None:
        self._started = 0.0
        self._sampled = 0.0
        self._trained = 0.0
        self._tokens = 0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._started = time.perf_counter()
        self._tokens = 0

    def on_rollout_end(self, trainer: Trainer, module: LightningModule, rollout: Rollout) -> None:
        """Take the split time."""
        self._sampled = time.perf_counter()
        self._tokens = int(rollout.lengths.sum())

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        """Take the time; what comes after the last batch, such as validation, is not training."""
        self._trained = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log, unless this was no rollout."""
        if not self._tokens:
            return
        pl_module.log("time/train_s", self._trained - self._sampled)
        pl_module.log("speed/tokens_per_s", trainer.world_size * self._tokens / (self._trained - self._started))

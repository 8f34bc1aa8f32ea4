"""Curves without holes, whenever a run is killed."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from rl_lightning.callbacks.tensorboard import writers

#: Where a checkpoint holds the metrics of its own step, and those that callbacks see.
_KEY, _SEEN = "metrics_of_this_step", "metrics_of_callbacks"


class DurableLogs(Callback):
    """Have on disk, with every checkpoint, all that was logged before it.

    Loggers keep points in memory for a while; and a checkpoint that is written when a step ends comes before Lightning logs that
    step's metrics. So it holds them itself, and the run that goes on from it logs them, again if need be: with the same values.

    It also holds `trainer.callback_metrics`: a run that goes on between the last step of an epoch and the epoch's end
    would otherwise have no value there for a `ModelCheckpoint` or an `EarlyStopping` that monitors what training logs.
    """

    def __init__(self) -> None:
        self._missing: dict[str, Any] | None = None
        self._seen: dict[str, float] = {}

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Write out what the loggers hold back, and take down what Lightning is about to log."""
        for writer in writers(trainer):
            writer.flush()
        checkpoint[_SEEN] = {name: float(value) for name, value in trainer.callback_metrics.items()}
        loop = trainer.fit_loop.epoch_loop
        progress: Any = loop.batch_progress.total
        if progress.processed == progress.completed:
            return  # not at the end of a step
        metrics = {name: float(value) for name, value in trainer._logger_connector.metrics["log"].items()}
        checkpoint[_KEY] = {"step": loop._batches_that_stepped, "metrics": {**metrics, "epoch": trainer.current_epoch}}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Remember what the run that was killed may not have logged, and what its callbacks saw."""
        self._missing = checkpoint.get(_KEY)
        self._seen = checkpoint.get(_SEEN, {})

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the one, and show callbacks the other."""
        seen = {name: torch.tensor(value) for name, value in self._seen.items()}
        trainer._logger_connector._callback_metrics.update(seen)
        if self._missing is not None:
            for logger in trainer.loggers:
                logger.log_metrics(self._missing["metrics"], step=self._missing["step"])
        self._missing = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Log a step under the number of those before it, also in a run that was stopped while it sampled and goes on: Lightning
        counts the step before the stop twice."""
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step

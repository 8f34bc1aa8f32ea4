"""Logged metrics that survive a kill at any moment."""

from __future__ import annotations

from typing import Any, TypedDict

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from rl_lightning.callbacks.logged_before import forget_after, remember_runs
from rl_lightning.callbacks.loggers import flush, loggers
from rl_lightning.typed import Typed

#: Keys of a checkpoint for the metrics of its own step, and for `trainer.callback_metrics`.
_KEY, _SEEN = "metrics_of_this_step", "metrics_of_callbacks"


class _Step(TypedDict):
    """Metrics that Lightning is about to log, and the step that they are of."""

    step: int
    metrics: dict[str, float]


class DurableLogs(Callback, metaclass=Typed):
    """Make sure that everything logged before a checkpoint is on disk with it.

    Loggers keep points in memory for a while, so every checkpoint flushes them. A checkpoint at the end of a step is written
    before Lightning logs that step's metrics. So the checkpoint holds these metrics too, and a resumed run logs them; if they
    were logged before, it logs the same values again.

    The checkpoint also holds `trainer.callback_metrics`. Without them, a run that resumes between the last step of an epoch and
    the epoch's end would have no value for a `ModelCheckpoint` or `EarlyStopping` that monitors a training metric.
    """

    def __init__(self) -> None:
        self._goes_on = False
        self._missing: _Step | None = None
        self._seen: dict[str, float] = {}

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, object]) -> None:
        """Flush the loggers, and store the metrics that Lightning is about to log."""
        for logger in loggers(trainer):
            flush(logger)
        checkpoint[_SEEN] = {name: float(value) for name, value in trainer.callback_metrics.items()}
        loop = trainer.fit_loop.epoch_loop
        progress: Any = loop.batch_progress.total
        if progress.processed == progress.completed or loop._should_accumulate():
            return  # not at the end of a step
        metrics = {name: float(value) for name, value in trainer._logger_connector.metrics["log"].items()}
        checkpoint[_KEY] = {"step": loop._batches_that_stepped, "metrics": {**metrics, "epoch": trainer.current_epoch}}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the checkpoint's metrics until training starts."""
        self._goes_on = True
        self._missing = checkpoint.get(_KEY)
        self._seen = checkpoint.get(_SEEN, {})

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the metrics of the checkpoint's step, and restore `trainer.callback_metrics`."""
        remember_runs(trainer)
        if self._goes_on:
            forget_after(trainer, trainer.global_step)
        seen = {name: torch.tensor(value) for name, value in self._seen.items()}
        trainer._logger_connector._callback_metrics.update(seen)
        if self._missing is not None:
            for logger in trainer.loggers:
                logger.log_metrics(self._missing["metrics"], step=self._missing["step"])
        self._missing = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        """Log a step under the number of optimizer steps before it.

        Lightning's own counter is one too high after a run was stopped while it sampled and then resumed.
        """
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step

"""Ending a run early such that nothing of it is lost."""

from __future__ import annotations

import logging
import os
import signal
import time
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from rl_lightning.errors import UserError
from rl_lightning.strategies import sum_over_ranks

log = logging.getLogger(__name__)

#: Exit status of a run that was stopped early and can go on: EX_TEMPFAIL of sysexits.h, "try again later".
STOPPED_EARLY = 75


class RunStopped(SystemExit):
    """Ends the process with the status `STOPPED_EARLY`, once Lightning has taken its things down."""

    def __init__(self, reason: str) -> None:
        super().__init__(STOPPED_EARLY)
        self.reason = reason


class GracefulStop(Callback):
    """Save `last.ckpt` and exit with status 75 on SIGTERM, SIGUSR1 (as SLURM can be told to send), Ctrl-C, or when the time is up;
    `--ckpt_path last` goes on as if nothing had happened.

    The run ends between two optimizer steps, or, in a single process, while responses are sampled; that rollout is then
    sampled again, and is the same. A second Ctrl-C ends it at once.

    Args:
        max_time: longest time of a fit, `days:hours:minutes:seconds`; no limit if null. The command line's
            `--trainer.max_time` means this.
    """

    def __init__(self, max_time: str | timedelta | dict[str, int] | None = None) -> None:
        self._limit = None if max_time is None else _seconds(max_time)
        self._ends = float("inf")
        self._signal: str | None = None
        self._before: dict[int, Any] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._ends = float("inf") if self._limit is None else time.monotonic() + self._limit

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen to signals, in the place of Lightning's handlers by now, and to the boundaries between steps."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        data.on_boundary = lambda together: self._check(trainer, together)
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            self._before[number] = signal.signal(number, self._note)
        # Lightning's handlers have listened since set-up began, and would end the run with status 0.
        if trainer.received_sigterm:
            trainer._signal_connector.received_sigterm = False
            self._signal = "SIGTERM"

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let others listen again."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._signal is None:
            os.write(2, b"\nstopping at the next opportunity; the checkpoint comes first\n")
        self._signal = signal.Signals(number).name
        # Whoever cannot wait asks a second time.
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def _reason(self) -> str | None:
        if self._signal is not None:
            return self._signal
        return "max_time" if time.monotonic() > self._ends else None

    def _check(self, trainer: Trainer, together: bool) -> None:
        """Raise if the run is to end.

        Args:
            trainer: of the run.
            together: whether every rank is here; only then can several of them agree on ending.
        """
        if not trainer.training:  # a validation is finished first
            return
        reason = self._reason()
        if trainer.world_size > 1:
            if not together:
                return
            asked = sum_over_ranks(trainer, torch.tensor(float(reason is not None)))
            if asked and reason is None:
                reason = "a signal to another rank"
        if reason is not None:
            raise RunStopped(reason)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save, if this is our own doing; Lightning restores the signals."""
        if not isinstance(exception, RunStopped):
            return
        path = last_checkpoint(trainer)
        trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            log.warning(
                "stopped by %s after optimizer step %d; it is in %s, and --ckpt_path %s goes on",
                exception.reason, trainer.global_step, path, "last" if trainer.checkpoint_callbacks else path,
            )  # fmt: skip


def last_checkpoint(trainer: Trainer) -> Path:
    """Return where `--ckpt_path last` looks."""
    savers = [one for one in trainer.checkpoint_callbacks if isinstance(one, ModelCheckpoint) and one.dirpath]
    folder = Path(savers[0].dirpath) if savers else Path(trainer.default_root_dir) / "checkpoints"  # type: ignore[arg-type]
    return folder / "last.ckpt"


def _seconds(limit: str | timedelta | dict[str, int]) -> float:
    if isinstance(limit, timedelta):
        return limit.total_seconds()
    if isinstance(limit, dict):
        return timedelta(**limit).total_seconds()
    parts = limit.split(":")
    if len(parts) != 4 or not all(part.isdigit() for part in parts):
        raise UserError(f"max_time must look like 00:12:30:00, which is 12 hours and a half, not {limit!r}")
    days, hours, minutes, seconds = map(int, parts)
    return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds).total_seconds()

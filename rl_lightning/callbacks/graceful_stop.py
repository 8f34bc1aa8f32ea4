"""Stopping a run early without losing work."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import FrameType

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loops.progress import _ProcessedTracker
from lightning.pytorch.trainer.states import TrainerFn

from rl_lightning.callbacks.loggers import run_directory
from rl_lightning.errors import UserError
from rl_lightning.hooks import StopCallback, Watch
from rl_lightning.strategies import StopSign, sum_over_ranks

log = logging.getLogger(__name__)

#: Exit status of a run that was stopped early and can go on: EX_TEMPFAIL of sysexits.h, "try again later".
STOPPED_EARLY = 75

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
#: Seconds after the first signal in which another one is ignored: `timeout` and some schedulers signal a process and its group.
_ECHO_S = 0.3
#: Seconds that the process may take to end after a second signal.
_UNWIND_S = 3.0


class RunStopped(SystemExit):
    """Raised to end a run: Lightning tears down, then the process exits with status `STOPPED_EARLY`.

    Args:
        reason: a signal's name, or `max_time`.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(STOPPED_EARLY)
        self.reason = reason


class GracefulStop(StopCallback):
    """Save `last.ckpt` and exit with status 75 on SIGTERM, SIGUSR1 (which SLURM can send before a time limit), Ctrl-C, SIGHUP (the
    terminal was closed) or timeout. A signal that was ignored when the run began stays ignored: as SIGHUP under `nohup`, or
    behind `trap ''` in a shell.

    A run that is resumed with `--ckpt_path last` continues bit for bit as if it had not been stopped.

    A run can stop between two optimizer steps, and while responses are sampled or scored, in training and validation. It does not
    wait for rewards. The interrupted rollout or validation is repeated after resuming, with the same result. During set-up there
    is nothing to save: the same command continues with the samples in the cache. A second signal ends the run at once.

    Args:
        max_time: longest duration of a fit, `days:hours:minutes:seconds`; no limit if null. The command line passes
            `--trainer.max_time` on to it.
    """

    def __init__(self, max_time: str | timedelta | dict[str, int] | None = None) -> None:
        self._limit = None if max_time is None else _seconds(max_time)
        self._ends = float("inf")
        self._signal: str | None = None
        self._noted = 0.0
        self._before: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}
        self._trains = False
        self._may_raise = False
        self._sign: StopSign | None = None
        self._deadline: threading.Timer | None = None

    # ---------------------------------------------------------------- listening

    def listen(self, trainer: Trainer) -> None:
        """Install the signal handlers, and put the stop hooks into the DataModule's watch."""
        watch: Watch = trainer.datamodule.watch  # type: ignore[attr-defined]
        watch.on_boundary = lambda together: self._check(trainer, together)
        watch.agreed = lambda: self._agreed(trainer)
        watch.abandonable = lambda alone: self._abandonable(trainer, alone)
        if not self._before and threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in _SIGNALS}
            self._hear()

    def _hear(self) -> None:
        """Install the signal handlers, but for signals that were ignored before."""
        for number, before in self._before.items():
            signal.signal(number, signal.SIG_IGN if before == signal.SIG_IGN else self._note)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the time limit."""
        self._ends = float("inf") if self._limit is None else time.monotonic() + self._limit

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace Lightning's signal handlers, which would end the run with status 0; write over the checkpoint gone on with."""
        self.listen(trainer)
        _write_over(trainer)
        self._hear()
        if trainer.received_sigterm:
            trainer._signal_connector.received_sigterm = False
            self._signal = self._signal or "SIGTERM"
        self._trains = True

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset Lightning's batch count of a validation that was interrupted and is repeated."""
        if trainer.state.fn == TrainerFn.FITTING:
            trainer.fit_loop.epoch_loop.val_loop.batch_progress.total.reset_on_restart()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the signal handlers from before the fit."""
        self._release(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the signal handlers from before an evaluation."""
        self._release(trainer)

    def _release(self, trainer: Trainer) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        # At its own teardown Lightning restores the handlers that it found, which were ours: give it the original ones.
        trainer._signal_connector._original_handlers.update(self._before)
        self._before = {}
        self._trains = False
        if self._deadline is not None:
            self._deadline.cancel()

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._signal is None:
            self._signal, self._noted = signal.Signals(number).name, now
            with contextlib.suppress(OSError):  # whoever read it has ended, as a closed terminal has
                os.write(2, b"\nstopping at the next opportunity; the checkpoint comes first\n")
            if self._may_raise:
                raise RunStopped(self._signal)
        # Of a terminal that is closed both the kernel and the shell tell.
        elif number == signal.SIGINT or (number != signal.SIGHUP and now - self._noted > _ECHO_S):
            self._end_at_once(number)

    def _end_at_once(self, number: int) -> None:
        """Raise the signal's usual exception. A third signal, or a timer of `_UNWIND_S`, ends the process without tear-down."""
        for one in self._before:
            signal.signal(one, signal.SIG_DFL)
        self._deadline = threading.Timer(_UNWIND_S, os._exit, (128 + number,))
        self._deadline.daemon = True
        self._deadline.start()
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    # ------------------------------------------------------------------ stopping

    def _reason(self) -> str | None:
        if self._signal is not None:
            return self._signal
        return "max_time" if time.monotonic() > self._ends else None

    def _check(self, trainer: Trainer, together: bool) -> None:
        """Raise `RunStopped` if the run has to end.

        Args:
            trainer: of the run.
            together: whether all ranks call this at the same point; only then can they agree by a collective.
        """
        reason = self._reason()
        if trainer.world_size > 1:
            if together:
                asked = bool(sum_over_ranks(trainer, torch.tensor(float(reason is not None))))
            elif self._sign is not None:
                # Leave the `agreed` context: all ranks meet at its end.
                asked = self._sign.is_up(put_up=reason is not None)
            else:
                return
            if asked and reason is None:
                reason = "a signal to another rank"
        if reason is not None:
            raise RunStopped(reason)

    @contextlib.contextmanager
    def _agreed(self, trainer: Trainer) -> Iterator[None]:
        """Context for work that all ranks do: a stop ends it on all ranks or on none."""
        if trainer.world_size == 1:
            yield
            return
        self._sign = StopSign()
        try:
            yield
        except RunStopped:
            pass  # raised again below, on all ranks
        finally:
            self._sign = None
        self._check(trainer, together=True)

    @contextlib.contextmanager
    def _abandonable(self, trainer: Trainer, alone: bool) -> Iterator[None]:
        """Context in which a signal raises at once, wherever the code is.

        Args:
            trainer: of the run.
            alone: whether this rank alone is inside; then a signal may raise on a single rank only.
        """
        self._check(trainer, together=False)
        self._may_raise = trainer.world_size == 1 or (self._sign is not None and not alone)
        try:
            yield
        finally:
            self._may_raise = False

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save a checkpoint if `RunStopped` ended a fit, and log how to go on; let Ctrl-C be heard again after one that ended it."""
        if isinstance(exception, RunStopped):
            if self._trains:
                then = _save(trainer)
            elif trainer.state.fn == TrainerFn.FITTING:
                then = "before training began; what was sampled so far is kept, and the same command goes on"
            else:
                then = "during evaluation; the same command begins anew"
            if trainer.is_global_zero:
                log.warning("stopped by %s %s", exception.reason, then)
        elif isinstance(exception, KeyboardInterrupt) and not self._before:
            # Before anybody listened. Lightning ignores Ctrl-C while it tears down, and left it so for the next run of the process.
            trainer._signal_connector._original_handlers.setdefault(signal.SIGINT, signal.default_int_handler)
        self._release(trainer)


def _save(trainer: Trainer) -> str:
    """Save `last.ckpt`, and return the words for the log: at which step, where, and how to go on."""
    path = last_checkpoint(trainer)
    if trainer.validating:
        _begin_validation_anew(trainer)
    trainer.save_checkpoint(path)
    name = "last" if trainer.checkpoint_callbacks else path
    config = Path(run_directory(trainer)) / "config.yaml"
    given = f"rl-lightning fit --config {shlex.quote(str(config))} " if config.is_file() else ""
    return f"after optimizer step {trainer.global_step}; it is in {path}, and {given}--ckpt_path {name} goes on"


def _write_over(trainer: Trainer) -> None:
    """Let a run that goes on from a `last*.ckpt` write its next one in its place: two would be there, and the older look like the newer."""
    path = Path(trainer.ckpt_path or "")
    if not path.is_file() or not path.name.startswith(ModelCheckpoint.CHECKPOINT_NAME_LAST):
        return
    for one in trainer.checkpoint_callbacks:
        if isinstance(one, ModelCheckpoint) and one.dirpath and Path(one.dirpath).resolve() == path.resolve().parent:
            one.last_model_path = str(Path(one.dirpath) / path.name)


def _begin_validation_anew(trainer: Trainer) -> None:
    """Set Lightning's counts to those of a validation's first batch, so that a resumed run starts the validation there."""
    progress = trainer.fit_loop.epoch_loop.val_loop.batch_progress
    before = progress.total.completed - progress.current.completed
    for count, done in ((progress.total, before), (progress.current, 0)):
        assert isinstance(count, _ProcessedTracker)
        count.ready, count.started, count.processed, count.completed = done + 1, done + 1, done, done


def last_checkpoint(trainer: Trainer) -> Path:
    """Return the path of the checkpoint that `--ckpt_path last` loads."""
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

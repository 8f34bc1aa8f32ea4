"""A lock that keeps two runs out of one directory."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import MLFlowLogger, WandbLogger

from rl_lightning.callbacks.guards import NonFiniteGuard
from rl_lightning.callbacks.hf_export import HFExport
from rl_lightning.errors import UserError
from rl_lightning.typed import Typed

log = logging.getLogger(__name__)

#: Name of the locked file in every directory that a run writes to.
LOCK_FILE = ".run_lock"


class RunLock(Callback, metaclass=Typed):
    """Refuse a `fit` into a directory that another run is writing to, and warn of one that begins anew where an earlier run was.

    Two runs with the same `default_root_dir`, or the same directory of checkpoints, logs or exports, would overwrite each other's
    files. So a fit takes an exclusive lock on a file in each of these directories. The kernel releases it when the process ends,
    however it ends. `validate`, `test` and `predict` take no lock. The cache of samples needs none: its files are named by their
    content and replaced atomically.

    The lock is `flock`. Between machines it works if the file system supports it (NFS since Linux 2.6.12, Lustre with
    `-o flock`). On a file system without locks the run goes on without one, after a warning.
    """

    def __init__(self) -> None:
        self._files: dict[Path, TextIO] = {}
        self._earlier: dict[str, object] | None = None
        self._goes_on = False

    def acquire(self, trainer: Trainer) -> None:
        """Take the locks on rank 0; does nothing if this callback holds them already.

        Lightning writes files before `setup`, so the command line calls this earlier.

        Raises:
            UserError: naming the process that holds a lock, or a directory that cannot be written to. No lock is held then.
        """
        if self._files or not trainer.is_global_zero:
            return
        try:
            for place, option in written_directories(trainer).items():
                self._lock(place, option)
        except BaseException:
            self.release(trainer)
            raise

    def _lock(self, place: Path, option: str) -> None:
        file = _open(place, option)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with file:
                holder = _read(file)
            raise UserError(
                f"{place} is in use by {_describe(holder)}: stop that run or wait for its end, or give this one a directory of "
                f"its own with {option}"
            ) from None
        except OSError as error:
            file.close()
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
                raise
            log.warning("%s is on a file system without locks: see to it that no other run writes there", place)
            return
        if os.fstat(file.fileno()).st_nlink == 0:  # a run that ended in between has removed the file: lock a new one
            file.close()
            self._lock(place, option)
            return
        if not self._files:
            self._earlier = _read(file)
        self._files[place] = file
        _write(file, {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")})

    def release(self, trainer: Trainer) -> None:
        """Release the locks and remove their files; that in `default_root_dir` stays, as a trace of a run that took a step."""
        for number, (place, file) in enumerate(self._files.items()):
            # The directory may be read-only by now, or full: closing the file is enough, and what ended the run is the news.
            with contextlib.suppress(OSError), file:
                if number:
                    (place / LOCK_FILE).unlink(missing_ok=True)
                    place.rmdir()  # only if nothing was written to it
                elif trainer.global_step == 0:
                    _write(file, self._earlier)
        self._files = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the locks before a fit."""
        if stage == "fit":
            self.acquire(trainer)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, object]) -> None:
        """Note that this run resumes an earlier one, so that no warning is due."""
        self._goes_on = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn if an earlier run has written to `default_root_dir` and this one does not resume it."""
        if self._earlier is not None and not self._goes_on:
            log.warning(
                "%s holds an earlier run (%s) and this one begins anew beside it: their curves mix in TensorBoard. "
                "--ckpt_path last would go on with the earlier one; --trainer.default_root_dir keeps them apart",
                trainer.default_root_dir,
                _describe(self._earlier),
            )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Release the locks at the end of a run."""
        self.release(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Release the locks after an error: the process may live on, in a notebook for instance."""
        self.release(trainer)


def written_directories(trainer: Trainer) -> dict[Path, str]:
    """Return directory → the option that sets it, for every local directory that a fit writes to; `default_root_dir` comes first.

    Weights & Biases and MLflow keep runs apart in one directory by themselves.
    """
    places: list[tuple[object, str]] = [(str(trainer.default_root_dir), "--trainer.default_root_dir")]
    own_files = [one for one in trainer.loggers if not isinstance(one, (WandbLogger, MLFlowLogger))]
    places += [(one.log_dir or one.save_dir, f"the {type(one).__name__}'s save_dir") for one in own_files]
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    for one in callbacks:
        if isinstance(one, HFExport):
            places.append((str(one.target(trainer)), "HFExport's dirpath"))
        elif isinstance(one, (ModelCheckpoint, NonFiniteGuard)):
            places.append((one.dirpath, f"the {type(one).__name__}'s dirpath"))
    found: dict[Path, str] = {}
    for place, option in places:
        if place and "://" not in str(place):
            found.setdefault(Path(str(place)).resolve(), option)
    return found


def _open(place: Path, option: str) -> TextIO:
    """Open the file to lock in a directory, and create the directory if it does not exist.

    Args:
        place: the directory.
        option: the option that sets it, for the message.

    Raises:
        UserError: if the directory cannot be written to.
    """
    try:
        place.mkdir(parents=True, exist_ok=True)
        # Opened to append, since "w" would erase who holds the lock.
        return (place / LOCK_FILE).open("a+", encoding="utf-8")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        reason = "it is a file" if isinstance(error, (FileExistsError, NotADirectoryError)) else error.strerror
        raise UserError(f"cannot write to {place}, {reason}: mend that, or choose another with {option}") from error


def _read(file: TextIO) -> dict[str, object] | None:
    """Return what a lock file says of the run that wrote it: pid, host, since; None if it is empty."""
    file.seek(0)
    try:
        found = json.loads(file.read())
    except json.JSONDecodeError:  # empty, or being written at this moment
        return None
    return found if isinstance(found, dict) else None


def _write(file: TextIO, contents: Mapping[str, object] | None) -> None:
    file.seek(0)
    file.truncate()
    file.write("" if contents is None else json.dumps(contents))
    file.flush()


def _describe(run: Mapping[str, object] | None) -> str:
    if run is None:
        return "another run"
    return f"process {run.get('pid')} on {run.get('host')}, since {run.get('since')}"

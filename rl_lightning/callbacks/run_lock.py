"""One run at a time in a directory."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
import time
from pathlib import Path
from typing import Any, TextIO

from lightning.pytorch import Callback, LightningModule, Trainer

from rl_lightning.errors import UserError

log = logging.getLogger(__name__)

#: The file in `default_root_dir` that a run locks.
LOCK_FILE = ".run_lock"


class RunLock(Callback):
    """Keep a second `fit` out of a directory while a first one writes there, and say when an earlier one has been there.

    Two runs in one `default_root_dir` would overwrite each other's checkpoints and mix their curves. The first holds an
    exclusive lock on a file in it, which the kernel lets go of when the process ends, however it ends. What is evaluated
    (`validate`, `test`, `predict`) takes no lock.

    The lock is `flock`: between machines it holds where the file system passes it on (NFS from Linux 2.6.12, Lustre with
    `-o flock`); a file system that knows no locks is used without one, after a warning.
    """

    def __init__(self) -> None:
        self._file: TextIO | None = None
        self._earlier: dict[str, Any] | None = None
        self._goes_on = False

    def acquire(self, trainer: Trainer) -> None:
        """Take the lock, on rank 0; does nothing if this callback has it. Lightning's own files come before `setup`, so the
        command line calls this earlier.

        Raises:
            UserError: naming the process that has it.
        """
        root = str(trainer.default_root_dir)
        if self._file is not None or not trainer.is_global_zero or "://" in root:
            return
        path = Path(root) / LOCK_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        # To append, since opening must not empty it: it says who has the lock.
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with file:
                holder = _read(file)
            raise UserError(
                f"{root} is in use by {_describe(holder)}: stop that run or wait for its end, or give this one a directory of "
                "its own with --trainer.default_root_dir"
            ) from None
        except OSError as error:
            file.close()
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
                raise
            log.warning("%s is on a file system without locks: see to it that no other run writes there", root)
            return
        self._file, self._earlier = file, _read(file)
        _write(file, {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")})

    def release(self, trainer: Trainer) -> None:
        """Let go of the lock. The file stays, as the sign that a run was here, unless it took no step."""
        if self._file is None:
            return
        if trainer.global_step == 0:
            _write(self._file, self._earlier)
        self._file.close()
        self._file = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the lock before a fit."""
        if stage == "fit":
            self.acquire(trainer)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note that this run goes on with another one."""
        self._goes_on = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn of a run that begins anew where another one was."""
        if self._earlier is not None and not self._goes_on:
            log.warning(
                "%s holds an earlier run (%s) and this one begins anew beside it: their curves mix in TensorBoard. "
                "--ckpt_path last would go on with the earlier one; --trainer.default_root_dir keeps them apart",
                trainer.default_root_dir,
                _describe(self._earlier),
            )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go."""
        self.release(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let go; this process may live on."""
        self.release(trainer)


def _read(file: TextIO) -> dict[str, Any] | None:
    """Return what the file says of the run that wrote it; None if it says nothing."""
    file.seek(0)
    try:
        found = json.loads(file.read())
    except json.JSONDecodeError:  # empty, or half written just now
        return None
    return found if isinstance(found, dict) else None


def _write(file: TextIO, contents: dict[str, Any] | None) -> None:
    file.seek(0)
    file.truncate()
    file.write("" if contents is None else json.dumps(contents))
    file.flush()


def _describe(run: dict[str, Any] | None) -> str:
    if run is None:
        return "another run"
    return f"process {run.get('pid')} on {run.get('host')}, since {run.get('since')}"

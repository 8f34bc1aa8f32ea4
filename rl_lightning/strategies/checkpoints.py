"""Files that are whole or not there."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO

from rl_lightning.errors import UserError

#: Bytes; a file that could not be written left less than this free.
_NO_ROOM = 1 << 16


def atomic_save(value: Any, path: str | Path) -> None:
    """Save with `torch.save` such that a crash, a kill or a full disk leaves the file that was there before.

    Raises:
        UserError: if the disk is full or the place cannot be written to.
    """
    path = Path(path)
    # On the same file system as the target, since only there is the replacement one step.
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("wb") as file:
            torch.save(value, file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except (OSError, RuntimeError) as error:
        # torch's archive writer turns a full disk into a RuntimeError.
        kept = "; the file that was there before is as it was" if path.exists() else ""
        # Nor does torch's writer always say why it failed.
        full = path.parent.is_dir() and shutil.disk_usage(path.parent).free < _NO_ROOM
        reason = f"[Errno {errno.ENOSPC}] {os.strerror(errno.ENOSPC)}" if full else _reason(error)
        raise UserError(f"cannot write {path}: {reason}{kept}: make room or choose another place") from error
    finally:
        unfinished.unlink(missing_ok=True)


def load_plain(path: str | Path, **options: Any) -> Any:
    """Load tensors and plain containers with `torch.load`; nothing in the file can run code.

    Raises:
        UserError: if the file is damaged or holds anything else.
    """
    try:
        return torch.load(path, weights_only=True, **options)
    except FileNotFoundError:
        raise
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"{path} cannot be read, it is damaged or no checkpoint: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    lines = str(error.__context__ or error).strip().splitlines() or [type(error).__name__]
    return lines[0].split(". ")[0][:200]


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints that replace their predecessor in one step, and are read without running code from them.

    Lightning's own writer moves the file from the directory for temporary files, which is a copy, that can be cut off,
    where this is another file system; and it holds the whole checkpoint in memory a second time.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Save; remote places (`s3://` and the like) are left to Lightning."""
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
        else:
            atomic_save(checkpoint, path)

    def load_checkpoint(
        self, path: Any, map_location: Callable[..., Any] | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load; `weights_only: false` is refused."""
        if weights_only is False:
            raise UserError("checkpoints are loaded with weights_only=True: they hold nothing that could run code")
        if "://" in str(path):
            return super().load_checkpoint(path, map_location, weights_only=True)
        checkpoint: dict[str, Any] = load_plain(path, map_location=map_location or (lambda storage, _: storage))
        return checkpoint

"""Files that are whole or not there."""

from __future__ import annotations

import errno
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.fabric.utilities.cloud_io import get_filesystem

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
    """Load tensors and plain containers with `torch.load`; nothing in the file can run code, and no damage goes unseen.

    Args:
        path: of a file that `torch.save` wrote.
        **options: of `torch.load`.

    Raises:
        UserError: if the file is damaged or holds anything else.
        FileNotFoundError: if there is none.
    """
    with open_file(path) as file:
        check_records(file, path)
    try:
        return torch.load(path, weights_only=True, **options)
    except Exception as error:  # what is no checkpoint can be wrong in any way
        raise UserError(f"{path} cannot be read, it is damaged or no checkpoint: {_reason(error)}") from error


def check_origin(path: str | Path, goes_on: bool) -> None:
    """Refuse what a run cannot take as its checkpoint; of a directory of shares only its metadata are looked at here.

    Args:
        path: of a file or directory.
        goes_on: whether training is to go on from it; if not, its weights are enough.

    Raises:
        UserError: if it is damaged, or was saved by something else than a run of Lightning's.
    """
    path = Path(path)
    if path.is_dir():
        if not (path / "meta.pt").is_file():
            raise UserError(f"{path} is a directory, and none that a run has saved as a checkpoint")
        found = load_plain(path / "meta.pt", map_location="cpu")
        needed = {"epoch", "global_step"}
    else:
        found = load_plain(path, mmap=True, map_location="cpu")
        needed = {"state_dict", "epoch", "global_step", "pytorch-lightning_version"}
    if not isinstance(found, dict) or not needed <= found.keys():
        raise UserError(
            f"{path} is no checkpoint of a run: --ckpt_path takes what ModelCheckpoint has saved; weights alone are read from a "
            "directory that model.init_args.policy names"
        )
    training = {"loops"} if path.is_dir() else {"loops", "optimizer_states"}
    if goes_on and not training <= found.keys():
        raise UserError(
            f"{path} holds no state of training (save_weights_only), so none can go on from it; it can be evaluated"
        )


def open_file(path: str | Path) -> IO[bytes]:
    """Open a checkpoint to read it.

    Raises:
        UserError: for a directory, or a file that this user may not read.
        FileNotFoundError: if there is none.
    """
    try:
        return Path(path).open("rb")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def check_records(file: IO[bytes], path: str | Path) -> None:
    """Compare all that `torch.save` wrote with the CRC-32 that its archive keeps of each record; `torch.load` does not.

    A record is read in pieces of 1 MiB, so this takes time (about 1 s a GB) and no memory.

    Args:
        file: the checkpoint, open for reading.
        path: what messages call it.

    Raises:
        UserError: if any record differs from what was written, or the file is no archive.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            # torch takes what is marked as a directory for empty, and loads whatever was in memory.
            marked = [record.filename for record in archive.infolist() if record.external_attr]
            if marked:
                raise zipfile.BadZipFile(f"its record {marked[0]} is none that torch has written")
            damaged = archive.testzip()
    except Exception as error:  # a bit that flips in a header may ask for any method of packing, encryption, or name
        raise UserError(f"{path} cannot be read, it is damaged or no checkpoint: {str(error)[:200]}") from error
    if damaged is not None:
        raise UserError(
            f"{path} cannot be read, it is damaged or no checkpoint: its record {damaged} is not what was written (CRC-32)"
        )


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
            with get_filesystem(path).open(str(path), "rb") as file:
                check_records(file, path)
            return super().load_checkpoint(path, map_location, weights_only=True)
        checkpoint: dict[str, Any] = load_plain(path, map_location=map_location or (lambda storage, _: storage))
        return checkpoint

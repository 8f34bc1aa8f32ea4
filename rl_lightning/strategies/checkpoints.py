"""Writing and reading checkpoints: replaced in one step, checked for damage, loaded without running code."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.fabric.utilities.cloud_io import get_filesystem

from rl_lightning.errors import UserError

if TYPE_CHECKING:
    from typing_extensions import Buffer


def atomic_save(value: object, path: str | Path) -> None:
    """Save with `torch.save`. A crash, a kill or a full disk leaves the file that was there before.

    Args:
        value: what `torch.save` takes.
        path: of the file; its directory is made if it is not there.

    Raises:
        UserError: if the disk is full or the path cannot be written to.
    """
    path = Path(path)
    # Beside the target, hence on the same file system: only there is the replacement one step.
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    refused: list[OSError] = []
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _Noting(unfinished, refused) as file:
            torch.save(value, file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except (OSError, RuntimeError) as error:  # what torch's archive writer raises does not say what the system refused
        reason = next(iter(refused), error)
        kept = "; the file that was there before is as it was" if path.exists() else ""
        full = isinstance(reason, OSError) and reason.errno in (errno.ENOSPC, errno.EDQUOT)
        raise UserError(
            f"cannot write {path}: {_reason(reason)}{kept}: {'make room' if full else 'mend that'} or choose another place"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # its folder may be gone, or be a file
            unfinished.unlink(missing_ok=True)


class _Noting(io.BufferedWriter):
    """A new file that notes what the system refuses to write."""

    def __init__(self, path: Path, refused: list[OSError]) -> None:
        super().__init__(io.FileIO(path, "wb"))
        self._refused = refused

    def write(self, data: Buffer) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self._refused.append(error)
            raise


def load_plain(path: str | Path, **options: Any) -> Any:
    """Load tensors and plain containers with `torch.load`. Damage is found by checksums, and nothing in the file can run code.

    Args:
        path: of a file that `torch.save` has written.
        **options: of `torch.load`.

    Raises:
        UserError: if the file is damaged or holds anything else.
        FileNotFoundError: if there is no such file.
    """
    with open_file(path) as file:
        check_records(file, path)
    try:
        return torch.load(path, weights_only=True, **options)
    except Exception as error:  # what is no checkpoint can be wrong in any way
        raise UserError(
            f"{path} cannot be read, it is damaged or no checkpoint: {_reason(error)}; take another one"
        ) from error


def checkpoint_steps(directories: Iterable[str | Path]) -> dict[Path, int]:
    """Return the checkpoints in some directories: path → optimizer steps that had been taken. Weights are not read."""
    found = {}
    for path in (path for directory in directories for path in sorted(Path(directory).glob("*.ckpt"))):
        place = path / "meta.pt" if path.is_dir() else path
        found[path] = int(torch.load(place, weights_only=True, mmap=True, map_location="cpu")["global_step"])
    return found


def check_origin(path: str | Path, goes_on: bool) -> None:
    """Refuse a path that a run cannot take as its checkpoint. Of a directory of shares only the metadata are read here.

    Args:
        path: of a file or directory.
        goes_on: training is to go on from it, which needs more than weights.

    Raises:
        UserError: if it is damaged, or was not saved by a Lightning Trainer.
    """
    path = Path(path)
    if path.is_dir():
        if not (path / "meta.pt").is_file():
            raise UserError(f"{path} is a directory, but not a checkpoint that a run has saved: name one that is in it")
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
            f"{path} holds no training state (save_weights_only): training cannot go on from it, but it can be evaluated"
        )


def read_states(path: str | Path) -> dict[str, object]:
    """Return what a checkpoint holds; of a directory of shares what is no share. Weights are not read before they are asked for."""
    path = Path(path)
    place = path / "meta.pt" if path.is_dir() else path
    found: dict[str, object] = torch.load(place, weights_only=True, mmap=True, map_location="cpu")
    return found


def open_file(path: str | Path) -> IO[bytes]:
    """Open a checkpoint to read it.

    Raises:
        UserError: for a directory, or a file that this user may not read.
        FileNotFoundError: if there is no such file.
    """
    try:
        return Path(path).open("rb")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def check_records(file: IO[bytes], path: str | Path) -> None:
    """Compare every record of a file that `torch.save` has written with the CRC-32 in its archive. `torch.load` does not.

    It takes about 1 s a GB, and little memory, since a record is read in pieces.

    Args:
        file: the checkpoint, open for reading.
        path: of the file, for messages.

    Raises:
        UserError: if any record differs from what was written, or the file is no archive.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            # torch takes a record that is marked as a directory for an empty one, and loads uninitialised memory.
            marked = [record.filename for record in archive.infolist() if record.external_attr]
            if marked:
                raise zipfile.BadZipFile(f"its record {marked[0]} is none that torch has written")
            damaged = archive.testzip()
    except Exception as error:  # a bit that flips in a header may ask for any method of packing, encryption, or name
        raise UserError(
            f"{path} cannot be read, it is damaged or no checkpoint: {str(error)[:200]}; take another one"
        ) from error
    if damaged is not None:
        raise UserError(
            f"{path} cannot be read, it is damaged or no checkpoint: its record {damaged} is not what was written (CRC-32); take another "
            "one"
        )


def _reason(error: BaseException) -> str:
    lines = str(error.__context__ or error).strip().splitlines() or [type(error).__name__]
    return lines[0].split(". ")[0][:200]


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint plugin, with `atomic_save` and `load_plain` for local files.

    Lightning's own plugin writes a temporary file and moves it. Where the directory for temporary files is another file
    system, that is a copy, which can be cut off. It also holds the whole checkpoint in memory a second time.
    """

    def save_checkpoint(self, checkpoint: dict[str, object], path: str | Path, storage_options: object = None) -> None:
        """Save with `atomic_save`. Remote paths (`s3://` and the like) are left to Lightning."""
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
        else:
            atomic_save(checkpoint, path)

    def load_checkpoint(
        self, path: str | Path, map_location: Callable[..., object] | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load after a check for damage.

        Raises:
            UserError: if the file is damaged, or for `weights_only: false`.
        """
        if weights_only is False:
            raise UserError("weights_only: false would let a checkpoint run code, and none needs that: leave it out")
        if "://" in str(path):
            with get_filesystem(path).open(str(path), "rb") as file:
                check_records(file, path)
            return super().load_checkpoint(path, map_location, weights_only=True)
        checkpoint: dict[str, Any] = load_plain(path, map_location=map_location or (lambda storage, _: storage))
        return checkpoint

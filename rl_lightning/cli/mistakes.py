"""Which exceptions are mistakes of the user's, and what to say of them."""

from __future__ import annotations

import errno
import os

from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError
from torch.distributed.checkpoint.api import CheckpointException

from rl_lightning.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT)
#: What a path can be that a file cannot be read from or written to: the user's to mend, not the program's.
_OUT_OF_REACH = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP,
)  # fmt: skip


def mistake_behind(error: BaseException | None) -> str | None:
    """Return what the user did wrong, if an error comes of that; jsonargparse wraps those of constructors in its own."""
    while error is not None:
        if isinstance(error, UserError):
            return str(error)
        if isinstance(error, (MisconfigurationException, OmegaConfBaseException)):
            return " ".join(str(error).split())
        if isinstance(error, CheckpointException):
            error = next(iter(error.failures.values()))[0]
            continue
        place = of_the_disk(error)
        if place is not None:
            return place
        error = error.__cause__ or error.__context__
    return None


def of_the_disk(error: BaseException) -> str | None:
    """Return what is wrong with the disk or a path, if an error says that."""
    number, place = None, None
    if isinstance(error, OSError) and isinstance(error.filename, (str, bytes, os.PathLike)):
        number, place = error.errno, os.fsdecode(error.filename)
    elif isinstance(error, OSError) and error.errno in _FULL:
        number = error.errno
    elif isinstance(error, SafetensorError):  # Rust's words for an error of the system
        number = next((one for one in (*_FULL, *_OUT_OF_REACH) if os.strerror(one) in str(error)), None)
    named = f" {place}" if place else ""
    if number in _FULL:
        return f"cannot write{named}, the disk is full: make room or choose another place"
    if number in _OUT_OF_REACH:
        return f"cannot read or write{named or ' a file of weights'}: {os.strerror(number)}: mend that or choose another place"
    return None

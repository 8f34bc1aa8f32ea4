"""Exceptions that are the user's mistakes, and their messages."""

from __future__ import annotations

import errno
import os
import re

from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf.errors import GrammarParseError, OmegaConfBaseException
from safetensors import SafetensorError
from torch.distributed.checkpoint.api import CheckpointException

from rl_lightning.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT)
#: Errors of a path that the user can correct: no permission, a directory in place of a file, a name that is too long.
_OUT_OF_REACH = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP,
)  # fmt: skip


def mistake_behind(error: BaseException | None) -> UserError | None:
    """Return the user's mistake that caused an error; None if it was no mistake of the user.

    The chain of causes is searched, since jsonargparse wraps the errors of constructors in its own.
    """
    while error is not None:
        if isinstance(error, UserError):
            return error
        if isinstance(error, OmegaConfBaseException):
            return UserError(of_an_interpolation(error), page="reference/command-line")
        if isinstance(error, MisconfigurationException):
            return UserError(" ".join(str(error).split()), page="reference/command-line")
        if isinstance(error, CheckpointException):
            error = next(iter(error.failures.values()))[0]
            continue
        place = of_the_disk(error)
        if place is not None:
            return UserError(place)
        error = error.__cause__ or error.__context__
    return None


def of_an_interpolation(error: OmegaConfBaseException) -> str:
    """Return a message for `${...}` in a configuration that leads nowhere: which option has it, and what is wrong with it."""
    said = str(error).splitlines()[0]
    missing = re.search(r"resolved to '(?:fit|validate|test|predict)?\.?([^']+)'", said)
    if missing:
        reason = f"${{...}} refers to {missing[1]}, which is not set: set it, or refer to an option that is"
    elif isinstance(error, GrammarParseError):
        reason = f"${{...}} cannot be read ({said}): it is written as ${{trainer.max_epochs}}, with both braces"
    else:
        reason = said.partition("resolving interpolation: ")[2].strip("\"'") or said
    place = str(error.full_key or "").partition(".")[2]
    return f"{place}: {reason}" if place else reason


def of_the_disk(error: BaseException) -> str | None:
    """Return a message for an error of the disk or of a path; None for other errors."""
    number, place = None, None
    if isinstance(error, OSError) and isinstance(error.filename, (str, bytes, os.PathLike)):
        number, place = error.errno, os.fsdecode(error.filename)
    elif isinstance(error, OSError) and error.errno in _FULL:
        number = error.errno
    elif isinstance(error, SafetensorError):  # holds the system's words for the error, but not its number
        number = next((one for one in (*_FULL, *_OUT_OF_REACH) if os.strerror(one) in str(error)), None)
    named = f" {place}" if place else ""
    if number in _FULL:
        return f"cannot write{named}, the disk is full: make room or choose another place"
    if number in _OUT_OF_REACH:
        return f"cannot read or write{named or ' a file of weights'}: {os.strerror(number)}: mend that or choose another place"
    return None

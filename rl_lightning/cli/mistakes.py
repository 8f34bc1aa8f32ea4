"""Exceptions that are the user's mistakes, and their messages."""

from __future__ import annotations

import errno
import re

from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf.errors import GrammarParseError, OmegaConfBaseException
from torch.distributed.checkpoint.api import CheckpointException

from rl_lightning.cli.system import of_the_system
from rl_lightning.errors import UserError, chain

#: What code asks for to see whether something is there: such an error is no reason for another one that happens then.
_QUESTIONS = (errno.ENOENT, errno.EEXIST)


def mistake_behind(error: BaseException | None) -> UserError | None:
    """Return the user's mistake that caused an error; None if it was no mistake of the user.

    The chain of causes is searched, since jsonargparse wraps the errors of constructors in its own.
    """
    told = True
    for one in chain(error):
        if isinstance(one, UserError):
            cause = one.__cause__  # of the errors of the system, those of files are told better by who has met them
            shortage = None if cause is None or isinstance(cause, OSError | UserError) else of_the_system(cause)
            return UserError(shortage, page="inside/faults") if shortage else one
        if isinstance(one, OmegaConfBaseException):
            return UserError(of_an_interpolation(one), page="reference/command-line")
        if isinstance(one, MisconfigurationException):
            return UserError(" ".join(str(one).split()), page="reference/command-line")
        if isinstance(one, CheckpointException):
            return mistake_behind(next(iter(one.failures.values()))[0])
        said = of_the_system(one)
        if said is not None and (told or getattr(one, "errno", None) not in _QUESTIONS):
            return UserError(said)
        told = one.__cause__ is not None
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

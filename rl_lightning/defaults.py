"""What every run has besides what its user asks for: the same from the command line as from Python."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ProgressBar

from rl_lightning.callbacks import (
    CollapseWarning,
    Dashboard,
    DurableLogs,
    FirstValidation,
    GracefulStop,
    GroupShape,
    NonFiniteGuard,
    RNGState,
    RolloutLines,
    RolloutProgressBar,
    RoomWarning,
    RunCard,
    RunLock,
    RunSummary,
    Speed,
    SpreadWarning,
)
from rl_lightning.callbacks.progress import interactive
from rl_lightning.errors import UserError
from rl_lightning.strategies import AtomicCheckpointIO

#: Settings of the Trainer that differ from Lightning's defaults.
TRAINER_DEFAULTS: dict[str, Any] = {"log_every_n_steps": 1, "num_sanity_val_steps": 0, "enable_model_summary": False}


def default_callbacks(
    listed: Sequence[Callback] = (),
    max_time: str | timedelta | dict[str, int] | None = None,
    progress_bar: bool = True,
) -> list[Callback]:
    """Return the callbacks that every run has, less those of a class that is listed already.

    Args:
        listed: the user's callbacks; they come before these in the Trainer's list.
        max_time: longest duration of a fit, for `GracefulStop`; no limit if None.
        progress_bar: whether to add a progress bar, if none is listed; lines in its place where no bar can be drawn.
    """
    own = {type(callback) for callback in listed}
    looks = (
        RNGState,
        RunCard,
        Speed,
        NonFiniteGuard,
        CollapseWarning,
        SpreadWarning,
        RoomWarning,
        GroupShape,
        DurableLogs,
        Dashboard,
        RunSummary,
    )
    callbacks: list[Callback] = [kind() for kind in looks if kind not in own]
    callbacks += [] if GracefulStop in own else [GracefulStop(max_time)]
    # After the others, so that the locks are held while they save after an exception.
    callbacks += [] if RunLock in own else [RunLock()]
    # What the lock says of an earlier run comes before anything is sampled.
    callbacks += [] if FirstValidation in own else [FirstValidation()]
    own_bar = any(isinstance(callback, ProgressBar) for callback in listed)
    if progress_bar and not own_bar:
        callbacks.append(RolloutProgressBar() if interactive() else RolloutLines())
    return callbacks


def complete(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return keyword arguments of a Trainer with the defaults of this library added.

    These are `TRAINER_DEFAULTS`, the default callbacks, and atomic writing of checkpoints. `GracefulStop` gets `max_time`: Lightning's
    own timer may stop between two microbatches of a step, and saves no checkpoint.

    Args:
        settings: the user's keyword arguments.

    Raises:
        UserError: for settings that cannot work.
    """
    if settings.get("check_val_every_n_epoch", 1) == 0:
        raise UserError(
            "trainer.check_val_every_n_epoch must be at least 1: limit_val_batches: 0 switches validation off"
        )
    given = settings.get("callbacks") or []
    listed = list(given) if isinstance(given, Sequence) else [given]
    progress_bar = settings.get("enable_progress_bar") is not False
    always = default_callbacks(listed, settings.get("max_time"), progress_bar)
    plugins = settings.get("plugins") or [AtomicCheckpointIO()]
    return {
        **TRAINER_DEFAULTS,
        **settings,
        "callbacks": [*listed, *always],
        "max_time": None,
        "plugins": plugins,
    }


@contextlib.contextmanager
def refusals_of_the_trainer() -> Iterator[None]:
    """Context in which the Trainer is made: raise its own complaints about names and numbers as `UserError`."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise UserError(f"trainer: {' '.join(str(error).split())}") from error
    except RuntimeError as error:
        twice = re.match(r"Found more than one stateful callback of type `(\w+)`", str(error))
        if twice is None:
            raise
        raise UserError(f"trainer.callbacks: {twice[1]} stands there twice with the same settings: keep one") from error

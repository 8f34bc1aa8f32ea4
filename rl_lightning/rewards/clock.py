"""The clock of a reward's call, which stops while the call waits for a process of its own to start."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator


def _nobody(runs: bool) -> None:
    """Have nobody told."""


_tell: Callable[[bool], None] = _nobody


def connect(tell: Callable[[bool], None]) -> None:
    """Say who is told whether the clock runs: in a reward worker, its parent."""
    global _tell
    _tell = tell


@contextlib.contextmanager
def stopped() -> Iterator[None]:
    """Have no clock run inside this; outside of a reward worker it changes nothing."""
    _tell(False)
    try:
        yield
    finally:
        _tell(True)

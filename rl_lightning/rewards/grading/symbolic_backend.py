"""What the symbolic worker runs: math-verify on two LaTeX expressions. Never imported by the process that trains."""

from __future__ import annotations

import logging
import signal
from types import FrameType


class OutOfTime(BaseException):
    """Raised by the alarm; not an Exception, so that no library on the way swallows it."""


def prepare() -> None:
    """Import math-verify, which takes about a second, and build its parser."""
    # We do what it warns of: time limits are ours, because its own need whole seconds.
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    equal("x^2", "x^{2}", 60.0)


def equal(gold: str, response: str, limit_s: float) -> bool | None:
    """Return whether two expressions are equal, or None if that took longer than `limit_s` seconds.

    Only math-verify's LaTeX reader is used: its other one ends in sympy's ``parse_expr``, which calls ``eval``.
    An alarm ends most long computations cheaply; one that stays in C is ended by the worker's parent.
    """
    from math_verify import LatexExtractionConfig, parse, verify

    def ring(number: int, frame: FrameType | None) -> None:
        raise OutOfTime

    previous = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, limit_s)
        latex = [LatexExtractionConfig()]
        expected, given = (
            parse(f"${text}$", latex, fallback_mode="no_fallback", parsing_timeout=None) for text in (gold, response)
        )
        # The order matters: math-verify forgives more in the second.
        return bool(expected and given) and verify(expected, given, float_rounding=12, timeout_seconds=None)
    except OutOfTime:
        return None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)

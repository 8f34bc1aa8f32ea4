r"""Comparing expressions such as ``2\sqrt{3}`` and ``\sqrt{12}`` by their values, in a process that can be killed."""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, cast

from rl_lightning.errors import UserError
from rl_lightning.rewards.grading.expression import read_expression
from rl_lightning.rewards.grading.forms import is_worked_out
from rl_lightning.rewards.grading.normalize import tighten

if TYPE_CHECKING:
    from rl_lightning.rewards.pool import WorkerPool

Result = Literal["equal", "different", "timeout", "refused"]

_BACKEND = "rl_lightning.rewards.grading.symbolic_backend"
_PATIENCE = 10.0  # wall-clock time of a comparison over its limit of CPU time, before the process is killed
_MOST_COMPARISONS = 64  # for one verdict


class ProcessDied(RuntimeError):
    """The process that compares was killed from outside, so it is unknown whether the answers are equal."""


class Symbolic:
    """Compares the expressions of one verdict.

    Args:
        timeout_s: longest time for one comparison, in seconds of CPU time.

    Attributes:
        reason: why the answers are not equal; of several reasons ``timeout`` before ``refused`` before ``different``.
    """

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.reason: Result = "different"
        self.comparisons = 0

    def __call__(self, kind: str, gold: tuple[str, ...], response: tuple[str, ...]) -> bool | None:
        """Return whether two expressions, or two relations, are equal.

        Args:
            kind: ``expression``, ``equation`` or ``inequality``.
            gold, response: an expression, or the two sides of a relation, as normalized texts.

        Raises:
            ProcessDied: if the process was killed from outside.
        """
        self.comparisons += 1
        # After a timeout the other comparisons of this verdict would take too long as well.
        tired = self.comparisons > _MOST_COMPARISONS or self.reason == "timeout"
        result = "refused" if tired else compare(kind, gold, response, self.timeout_s)
        if result in ("timeout", "refused") and self.reason != "timeout":
            self.reason = result
        return result == "equal"


def require_backend() -> None:
    """Raise UserError unless mpmath is installed."""
    if importlib.util.find_spec("mpmath") is None:
        raise UserError("Symbolic grading needs mpmath: pip install 'rl_lightning[math]', or set symbolic: false")


def compare(kind: str, gold: tuple[str, ...], response: tuple[str, ...], timeout_s: float) -> Result:
    """Compare two expressions, or two relations.

    Args:
        kind: ``expression``, ``equation`` or ``inequality``.
        gold, response: an expression, or the two sides of a relation, as normalized texts.
        timeout_s: longest time, in seconds of CPU time.

    Returns:
        How they compare; ``refused`` if they are too long, cannot be read as expressions, or have no values to compare.

    Raises:
        ProcessDied: if the process was killed from outside.
    """
    gold, response = tuple(map(tighten, gold)), tuple(map(tighten, response))
    read = [[read_expression(text) for text in texts] for texts in (gold, response)]
    sides = [[side for side in texts if side is not None] for texts in read]
    if len(sides[0]) < len(gold) or len(sides[1]) < len(response):
        return "refused"
    names = [frozenset().union(*(side.variables for side in texts)) for texts in sides]
    if names[0] != names[1] or (kind == "expression" and not is_worked_out(gold[0], response[0])):
        return "different"
    call = (f"{_BACKEND}.result", {"kind": kind, "gold": gold, "response": response, "limit_s": timeout_s})
    outcome = _pool(timeout_s).map([call])[0]
    if outcome.kind == "timeout":
        return "timeout"
    if outcome.kind == "died":
        raise ProcessDied(f"The process for symbolic grading ended during a comparison: {outcome.error}")
    if outcome.kind != "ok":
        raise RuntimeError(f"Symbolic grading failed:\n{outcome.error}")
    return cast(Result, outcome.value)


def start(timeout_s: float) -> None:
    """Start the process before the first comparison, and wait until it is ready."""
    require_backend()
    _pool(timeout_s).map([("time.sleep", {})])


@lru_cache(maxsize=4)
def _pool(timeout_s: float) -> WorkerPool:
    require_backend()
    from rl_lightning.rewards.pool import WorkerPool  # not for those who only compare numbers

    return WorkerPool(workers=1, timeout_s=_PATIENCE * timeout_s, setup=[(f"{_BACKEND}.prepare", {})])

r"""Equality of expressions such as ``2\sqrt{3}`` and ``\sqrt{12}``, in a process of its own that can be killed."""

from __future__ import annotations

import importlib.util
import re
from functools import lru_cache
from math import prod
from typing import Literal

from rl_lightning.errors import UserError
from rl_lightning.rewards import tally
from rl_lightning.rewards.grading.rational import parse_quantity
from rl_lightning.rewards.workers import WorkerPool

Result = Literal["equal", "different", "timeout", "refused"]

_BACKEND = "rl_lightning.rewards.grading.symbolic_backend"
_MOST_CHARACTERS, _MOST_DIGITS, _MOST_NESTING, _MOST_EXPONENT = 256, 200, 20, 9999

_ALLOWED = re.compile(r"[A-Za-z0-9\\ +\-*/^(){}\[\],.=<>|!_√π∞≤≥∪∩·×÷]*")
_REFUSED = re.compile(
    r"__|%|\\text|\\operatorname"  # words and percentages have their own rules
    r"|\\(?:int|iint|oint|sum|prod|lim|binom|dbinom|tbinom|frac\{d)(?![A-Za-z])"  # may take for ever
    r"|\d{3,}!|[^\w ]!|!!"  # factorials of more than two digits, or of expressions
    r"|\d +\d"  # digits apart are not one number
    r"|\^ *(?:\{[^{}]*[\^{]|[^{} ] *\^)"  # towers of powers
)
_EXPONENT = re.compile(r"\^ *\{? *-? *(\d+)")
_BINARY_OPERATOR = re.compile(r"[\w)}!] *(?:[-+*·×÷]|\\times|\\cdot|\\div)")
_ROOT = re.compile(r"√ *(?:(\d+|[A-Za-z])|\(([^()]*)\))")


def require_backend() -> None:
    """Raise UserError unless math-verify is installed."""
    if importlib.util.find_spec("math_verify") is None:
        raise UserError(
            "Symbolic grading needs math-verify: pip install 'math-verify[antlr4_13_2]', or set symbolic: false"
        )


def compare(gold: str, response: str, timeout_s: float) -> Result:
    """Compare two normalized texts as expressions.

    Args:
        gold, response: as :func:`~rl_lightning.rewards.grading.normalize.normalize` returns them.
        timeout_s: longest time for the comparison, in seconds. Starting the process isn't counted.

    Returns:
        ``timeout`` also counts as ``grader_timeout`` in :mod:`rl_lightning.rewards.tally`; ``refused``: the texts are
        too long or too deep, or not of a kind that this layer judges.
    """
    if _unfit(gold) or _unfit(response) or not _comparable(gold, response):
        return "refused"
    arguments = {"gold": _latex(gold), "response": _latex(response), "limit_s": 0.8 * timeout_s}
    outcome = _pool(timeout_s).map([(f"{_BACKEND}.equal", arguments)])[0]
    if outcome.kind == "timeout" or (outcome.kind == "ok" and outcome.value is None):
        tally.count("grader_timeout")
        return "timeout"
    return "equal" if outcome.kind == "ok" and outcome.value else "different"


def start(timeout_s: float) -> None:
    """Start the process ahead of the first comparison, and wait until it is ready."""
    require_backend()
    _pool(timeout_s).map([("time.sleep", {})])


@lru_cache(maxsize=4)
def _pool(timeout_s: float) -> WorkerPool:
    require_backend()
    return WorkerPool(workers=1, timeout_s=timeout_s, setup=[(f"{_BACKEND}.prepare", {})])


def _unfit(text: str) -> bool:
    """Return whether a text is no expression, or one that could keep a computer algebra system busy."""
    if len(text) > _MOST_CHARACTERS or sum(map(str.isdigit, text)) > _MOST_DIGITS:
        return True
    if not _ALLOWED.fullmatch(text) or _REFUSED.search(text):
        return True
    exponents = [int(digits) for digits in _EXPONENT.findall(text)]
    # The product, because (x^a)^b is x^(ab).
    if prod(exponents) > _MOST_EXPONENT:
        return True
    depth = 0
    for symbol in text:
        depth += (symbol in "([{") - (symbol in ")]}")
        if not 0 <= depth <= _MOST_NESTING:
            return True
    return depth != 0


def _comparable(gold: str, response: str) -> bool:
    """Return whether both have the same form; math-verify would take ``x=4=5`` for 5, and 3.141593 for pi."""
    for symbol in "=,":
        if gold.count(symbol) != response.count(symbol):
            return False
    if ("." in gold) != ("." in response):
        return False
    # For a number the work must have been done: 3+4 is the question, not its answer.
    return parse_quantity(gold) is None or not _BINARY_OPERATOR.search(response)


def _latex(text: str) -> str:
    text = _ROOT.sub(lambda root: r"\sqrt{" + (root[1] or root[2]) + "}", text)
    for symbol, command in (("π", r"\pi "), ("∞", r"\infty "), ("≤", r"\le "), ("≥", r"\ge "), ("∪", r"\cup ")):
        text = text.replace(symbol, command)
    return text

"""Does a response give the right answer?"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

from rl_lightning.rewards.grading.extract import DEFAULT_MARKERS, Extract, find_answers
from rl_lightning.rewards.grading.normalize import normalize, tighten
from rl_lightning.rewards.grading.rational import Percent, Quantity, divides_by_zero, parse_quantity
from rl_lightning.rewards.grading.structure import Collection, choice_letter, parse_collection
from rl_lightning.rewards.grading.symbolic import compare as compare_symbolically

Layer = Literal["extract", "exact", "rational", "structure", "symbolic", "none"]

MOST_CHARACTERS = 4096  # of an answer; the response may be of any length
_MOST_CANDIDATES = 4
_MOST_NESTING = 8
_ASSIGNMENT = re.compile(r"(\\?[A-Za-z]+(?:_\{?\w+\}?)?) *= *([^=<>]+)")


@dataclass(frozen=True)
class Verdict:
    """The result of grading; true if the response is correct.

    Args:
        correct: whether the response gives the right answer.
        layer: the layer that decided; ``none`` if no layer could compare the two, which counts as incorrect.
        extracted: the answer found in the response, normalized.
        reason: ``equal``; ``different``; ``not_comparable``; ``timeout`` and ``refused`` (of the symbolic layer); or
            why there is no answer: ``no_marker``, ``unclosed``, ``unfinished_thought``, ``empty``, ``ambiguous``,
            ``too_long``; or ``bad_gold``.
        elapsed_s: time that grading took, in seconds.
    """

    correct: bool
    layer: Layer
    extracted: str | None
    reason: str
    elapsed_s: float = 0.0

    def __bool__(self) -> bool:
        return self.correct


@dataclass(frozen=True)
class _Rules:
    percent: Percent
    rtol: float
    ignore_case: bool


def is_equivalent(
    *,
    answer: str,
    response: str,
    extract: Extract = DEFAULT_MARKERS,
    multiple: Literal["reject", "last"] = "reject",
    percent: Percent = "hundredth",
    rtol: float = 0.0,
    ignore_case: bool = False,
    symbolic: bool = False,
    timeout_s: float = 2.0,
) -> Verdict:
    r"""Return whether a response gives the gold answer.

    Layers, cheap ones first; the first that can tell decides, so no layer overturns an exact match:

    1. ``extract`` the answer from the end of the response; none, an empty or an ambiguous one is incorrect;
    2. ``exact``: the same text after Unicode, LaTeX wrapping and spaces are normalized;
    3. ``rational``: the same exact number, in any notation (0.5, .50, 1/2, ``\frac12``, 50%); a known unit may be left
       out but not changed;
    4. ``structure``: choice letters (``B``, ``(B)``); tuples, intervals and bare lists in order; sets in any order;
    5. ``symbolic``: math-verify, in a process that is killed when it takes too long.

    Nothing that the model wrote is ever evaluated as code.

    Args:
        answer: the gold answer; check it once with :func:`check_answer`. Here a bad one makes every response incorrect.
        response: what the model wrote, of any length.
        extract: where the answer is, see :func:`~rl_lightning.rewards.grading.extract.find_answers`.
        multiple: several different marked answers are incorrect (``reject``: hedging doesn't pay), or the ``last``
            one counts.
        percent: ``hundredth``: 50% equals 0.5 and not 50; ``unit``: 50% equals 50 and not 0.5.
        rtol: relative tolerance of numbers, a fraction of the gold number. A gold number written as an integer stays
            exact: it was counted, not rounded.
        ignore_case: whether ``a`` equals ``A``.
        symbolic: whether to use the last layer, which needs the package ``math-verify``.
        timeout_s: longest time for the symbolic layer, in seconds; beyond it the response is incorrect.

    Raises:
        ValueError: if an option has an unknown value.
        UserError: if math-verify is missing.

    Source: layers of our own; math-verify for the last. Unlike in verl's ``math_dapo`` nothing is cut out of the middle
    of an answer, so ``1=2=5`` isn't 5 and ``1 2`` isn't 12.

    Example:
        >>> bool(is_equivalent(answer="1/2", response=r"It follows that \boxed{0.50}."))
        True
    """
    started = time.perf_counter()
    check_options(multiple=multiple, percent=percent, rtol=rtol)
    rules = _Rules(percent, rtol, ignore_case)
    gold = normalize(answer[: MOST_CHARACTERS + 1])
    if _gold_problem(answer, gold):
        verdict = Verdict(False, "none", None, "bad_gold")
    else:
        candidate, problem = _extract(response, extract, multiple, rules)
        if candidate is None:
            verdict = Verdict(False, "extract", None, problem)
        else:
            verdict = _judge(gold, candidate, rules, timeout_s if symbolic else None)
    return replace(verdict, elapsed_s=time.perf_counter() - started)


def check_answer(answer: str | None) -> None:
    """Raise ValueError if a gold answer is one that no response could equal, or that every empty response would."""
    if answer is None:
        raise ValueError("there is no gold answer")
    problem = _gold_problem(answer, normalize(answer[: MOST_CHARACTERS + 1]))
    if problem:
        raise ValueError(f"gold answer {answer[:80]!r} {problem}")


def check_options(*, multiple: str = "reject", percent: str = "hundredth", rtol: float = 0.0) -> None:
    """Raise ValueError if an option of :func:`is_equivalent` has a value that it doesn't know."""
    if multiple not in ("reject", "last"):
        raise ValueError(f"multiple must be reject or last, not {multiple!r}")
    if percent not in ("hundredth", "unit"):
        raise ValueError(f"percent must be hundredth or unit, not {percent!r}")
    if not 0 <= rtol < 1:
        raise ValueError(f"rtol is a fraction in [0, 1), not {rtol!r}")


def extract_answer(
    response: str, extract: Extract = DEFAULT_MARKERS, multiple: Literal["reject", "last"] = "reject"
) -> str | None:
    """Return the answer that a response marks, as written but for surrounding space; None if there is no clear one."""
    check_options(multiple=multiple)
    candidates = [candidate.strip() for candidate in find_answers(response, extract).candidates]
    if not candidates or not candidates[-1] or (multiple == "reject" and len(set(candidates)) > 1):
        return None
    return candidates[-1]


def _gold_problem(answer: str, gold: str) -> str | None:
    if not gold:
        return "is empty"
    if len(answer) > MOST_CHARACTERS:
        return f"is longer than {MOST_CHARACTERS} characters"
    if gold.lower().lstrip("+-") == "nan":
        return "is not a number"
    if divides_by_zero(gold):
        return "divides by zero"
    unescaped = re.sub(r"\\[{}]", "", gold)
    return "has unmatched braces" if unescaped.count("{") != unescaped.count("}") else None


def _extract(response: str, extract: Extract, multiple: str, rules: _Rules) -> tuple[str | None, str]:
    """Return the one normalized answer of a response, or None and what is wrong."""
    found = find_answers(response, extract)
    if not found.candidates:
        return None, found.problem
    candidates = list(dict.fromkeys(reversed(found.candidates)))
    if multiple == "last":
        candidates = candidates[:1]
    if len(candidates) > _MOST_CANDIDATES:
        return None, "ambiguous"
    if any(len(candidate) > MOST_CHARACTERS for candidate in candidates):
        return None, "too_long"
    normalized = [normalize(candidate) for candidate in candidates]
    if any(not _compare(normalized[0], other, rules)[0] for other in normalized[1:]):
        return None, "ambiguous"
    return (normalized[0], "") if normalized[0] else (None, "empty")


def _judge(gold: str, candidate: str, rules: _Rules, symbolic_timeout_s: float | None) -> Verdict:
    correct, layer = _compare(gold, candidate, rules)
    if correct is not None:
        return Verdict(correct, layer, candidate, "equal" if correct else "different")
    if symbolic_timeout_s is None:
        return Verdict(False, "none", candidate, "not_comparable")
    gold, candidate_value = _without_variable(gold, candidate)
    result = compare_symbolically(gold, candidate_value, symbolic_timeout_s)
    return Verdict(result == "equal", "symbolic", candidate, result)


def _compare(gold: str, response: str, rules: _Rules, nesting: int = 0) -> tuple[bool | None, Layer]:
    """Compare two normalized answers by the layers 2 to 4; None if these cannot tell."""
    if _same_text(gold, response, rules):
        return True, "exact"
    gold, response = _without_variable(gold, response)
    if _same_text(gold, response, rules):
        return True, "exact"
    expected, given = parse_quantity(gold, rules.percent), parse_quantity(response, rules.percent)
    if expected and given:
        return _same_number(expected, given, gold, rules), "rational"
    letters = choice_letter(gold), choice_letter(response)
    if letters[0] and letters[1]:
        return _same_text(letters[0], letters[1], rules), "structure"
    first, second = parse_collection(gold), parse_collection(response)
    if (expected and second) or (first and given):  # `1, 234` is no way to write 1,234
        return False, "structure"
    if first and second and nesting < _MOST_NESTING:
        return _same_items(first, second, rules, nesting + 1), "structure"
    return None, "none"


def _same_text(first: str, second: str, rules: _Rules) -> bool:
    first, second = tighten(first), tighten(second)
    return first == second or (rules.ignore_case and first.casefold() == second.casefold())


def _without_variable(gold: str, response: str) -> tuple[str, str]:
    """Read ``x = 3`` as ``3``, unless both name a variable, and not the same."""
    named = [_ASSIGNMENT.fullmatch(gold), _ASSIGNMENT.fullmatch(response)]
    if named[0] and named[1] and named[0][1] != named[1][1]:
        return gold, response
    gold, response = (found[2] if found else text for found, text in zip(named, (gold, response), strict=True))
    return gold, response


def _same_number(expected: Quantity, given: Quantity, gold: str, rules: _Rules) -> bool:
    if None not in (expected.unit, given.unit) and expected.unit != given.unit:
        return False
    rounded = not gold.lstrip("+-").replace(",", "").isdigit()
    tolerance = Fraction(rules.rtol) * abs(expected.value) if rounded else Fraction(0)
    return abs(expected.value - given.value) <= tolerance


def _same_items(gold: Collection, response: Collection, rules: _Rules, nesting: int) -> bool | None:
    """Compare item by item; None if some pair of items can only be told apart symbolically."""
    if gold.brackets != response.brackets or (gold.ordered and len(gold.items) != len(response.items)):
        return False
    if gold.ordered:
        pairs = zip(gold.items, response.items, strict=True)
        return _all([_compare(first, second, rules, nesting)[0] for first, second in pairs])
    table = [[_compare(first, second, rules, nesting)[0] for second in response.items] for first in gold.items]
    return _all([_any(row) for row in [*table, *zip(*table, strict=True)]])


def _all(results: Sequence[bool | None]) -> bool | None:
    return False if False in results else None if None in results else True


def _any(results: Sequence[bool | None]) -> bool | None:
    return True if True in results else None if None in results else False

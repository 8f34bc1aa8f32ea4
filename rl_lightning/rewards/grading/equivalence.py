"""The verdict on a response: whether it gives the gold answer."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from rl_lightning.rewards import tally
from rl_lightning.rewards.grading import symbolic as backend
from rl_lightning.rewards.grading.compare import Comparison, Layer, Lists, Rules
from rl_lightning.rewards.grading.extract import DEFAULT_MARKERS, Extract, find_answers
from rl_lightning.rewards.grading.gold import gold_answers, marked_in_gold
from rl_lightning.rewards.grading.normalize import normalize, tighten
from rl_lightning.rewards.grading.rational import Percent, divides_by_zero
from rl_lightning.rewards.grading.structure import parse_collection
from rl_lightning.thoughts import DEFAULT_THOUGHTS, Thoughts

MOST_CHARACTERS = 4096  # of an answer; the response may be of any length
_MOST_CANDIDATES = 16


@dataclass(frozen=True)
class Verdict:
    """The result of grading. Its truth value is `correct`.

    Args:
        correct: whether the response gives the gold answer.
        layer: the layer that decided; ``none`` if no layer could compare the two, which counts as incorrect.
        extracted: the answer found in the response, normalized; None if there is none.
        reason: ``equal``, ``different`` or ``not_comparable``; from the symbolic layer ``timeout``, ``refused``, or ``died`` if
            its process was killed from outside; without an answer ``no_marker``, ``unclosed``, ``unfinished_thought``,
            ``empty``, ``ambiguous`` or ``too_long``; ``bad_gold`` if the gold answer cannot be one.
        elapsed_s: time that grading took, in seconds.
    """

    correct: bool
    layer: Layer
    extracted: str | None
    reason: str
    elapsed_s: float = 0.0

    def __bool__(self) -> bool:
        return self.correct


def is_equivalent(
    *,
    answer: object,
    response: str,
    prompt: str = "",
    extract: Extract = DEFAULT_MARKERS,
    multiple: Literal["reject", "last"] = "reject",
    percent: Percent = "hundredth",
    rtol: float = 0.0,
    ignore_case: bool = False,
    lists: Lists = "unordered",
    symbolic: bool = False,
    timeout_s: float = 0.5,
    thoughts: Thoughts = DEFAULT_THOUGHTS,
) -> Verdict:
    r"""Return whether a response gives the gold answer.

    There are five layers, cheap ones first. The first layer that can compare the two decides:

    1. ``extract``: find the answer at the end of the response; no answer, an empty or an ambiguous one is incorrect;
    2. ``exact``: the same text, once Unicode, LaTeX wrapping and spaces are normalized;
    3. ``rational``: the same exact number in any notation (0.5, .50, 1/2, ``\frac12``, 50%). A unit on one side only is
       ignored; numbers with different units are never equal;
    4. ``structure``: choice letters (``B``, ``(B)``); tuples, intervals and matrices in order; sets, unions and bare lists in
       any order; relations side by side;
    5. ``symbolic``: the same values at several points, to 40 digits, in a process that is killed when it takes too long.
       If the gold answer is a number, the response must be worked out: at most a fraction, a root or a power of numbers, or a
       multiple of a constant.

    Nothing that the model wrote is evaluated as code. Verdicts are cached.

    Args:
        answer: the gold answer, see :func:`~rl_lightning.rewards.grading.gold.gold_answers`. Check it beforehand with
            :func:`check_answer`; here a bad one makes every response incorrect.
        response: what the model wrote, of any length.
        prompt: what the model was asked. If it ends by opening a thought, the answer comes after the end of that thought.
        extract: where the answer is, see :func:`~rl_lightning.rewards.grading.extract.find_answers`.
        multiple: with ``reject``, several different marked answers are incorrect, so that hedging does not pay; with ``last``,
            the last one counts. Several boxes that together are the parts of the gold answer are correct.
        percent: with ``hundredth``, 50% equals 0.5 and not 50; with ``unit``, 50% equals 50 and not 0.5; with ``either``, 50%
            equals both if one side only has the sign.
        rtol: relative tolerance of numbers, as a fraction of the gold number. A gold number that is written as an integer is
            compared exactly.
        ignore_case: whether ``a`` equals ``A``.
        lists: whether the order of a bare list of numbers or expressions, ``1, 2``, matters. It never does where the list gives
            solutions (``x=1, x=2``), and always does where it goes on without end, or its items are words.
        symbolic: whether to use the last layer.
        timeout_s: longest time for one comparison of the symbolic layer, in seconds; after it the response is incorrect.
        thoughts: pairs of texts that open and end a thought.

    Raises:
        ValueError: if an option has an unknown value.

    Source: our own. Unlike verl's ``math_dapo`` it removes nothing from the middle of an answer, so ``1=2=5`` is not 5 and
    ``1 2`` is not 12.

    Example:
        >>> bool(is_equivalent(answer="1/2", response=r"It follows that \boxed{0.50}."))
        True
    """
    started = time.perf_counter()
    check_options(multiple=multiple, percent=percent, rtol=rtol, lists=lists)
    rules = Rules(percent, rtol, ignore_case or isinstance(answer, bool), lists)
    limit = timeout_s if symbolic else None
    try:
        golds = [_checked(text) for text in gold_answers(answer)]
    except ValueError:
        verdict = Verdict(False, "none", None, "bad_gold")
    else:
        found = find_answers(response, extract, prompt, thoughts)
        verdict = _best(golds, found.candidates, found.problem, multiple, rules, limit)
    if verdict.reason in ("timeout", "died"):
        tally.count(f"grader_{verdict.reason}")
    return replace(verdict, elapsed_s=time.perf_counter() - started)


def check_answer(answer: object) -> None:
    """Check a gold answer before training.

    Raises:
        ValueError: if it is missing or empty, or no response could equal it.
    """
    for text in gold_answers(answer):
        _checked(text)


def may_be_equal(first: object, second: object) -> bool:
    """Return whether two gold answers could mean the same: they have an alternative in common, or one of them is no gold answer."""
    try:
        check_answer(first)
        check_answer(second)
    except ValueError:
        return True
    return any(is_equivalent(answer=first, response=text, percent="either") for text in gold_answers(second))


def check_options(
    *, multiple: str = "reject", percent: str = "hundredth", rtol: float = 0.0, lists: str = "unordered"
) -> None:
    """Raise ValueError if an option of :func:`is_equivalent` has an unknown value."""
    if multiple not in ("reject", "last"):
        raise ValueError(f"multiple must be reject or last, not {multiple!r}")
    if percent not in ("hundredth", "unit", "either"):
        raise ValueError(f"percent must be hundredth, unit or either, not {percent!r}")
    if lists not in ("unordered", "ordered"):
        raise ValueError(f"lists must be unordered or ordered, not {lists!r}")
    if not 0 <= rtol < 1:
        raise ValueError(f"rtol is a fraction in [0, 1), not {rtol!r}")


def extract_answer(
    response: str,
    extract: Extract = DEFAULT_MARKERS,
    multiple: Literal["reject", "last"] = "reject",
    prompt: str = "",
    thoughts: Thoughts = DEFAULT_THOUGHTS,
) -> str | None:
    """Return the answer that a response marks, without surrounding spaces; None if there is none, or several different ones.

    Args:
        response, extract, multiple, prompt, thoughts: see :func:`is_equivalent`.
    """
    check_options(multiple=multiple)
    candidates = [candidate.strip() for candidate in find_answers(response, extract, prompt, thoughts).candidates]
    if not candidates or not candidates[-1] or (multiple == "reject" and len(set(candidates)) > 1):
        return None
    return candidates[-1]


@lru_cache(maxsize=8192)
def _checked(answer: str) -> str:
    """Return the answer that a gold text marks, normalized.

    Raises:
        ValueError: if it cannot be an answer; see `_gold_problem`.
    """
    marked = marked_in_gold(answer)
    gold = normalize(marked[: MOST_CHARACTERS + 1])
    problem = _gold_problem(marked, gold)
    if problem is None:
        found = find_answers(answer)
        if not _best([gold], found.candidates, found.problem, "reject", Rules(), None):
            problem = "is not equal to itself: a response that repeats it would be wrong"
    if problem is not None:
        raise ValueError(f"gold answer {marked[:80]!r} {problem}")
    return gold


def _gold_problem(answer: str, gold: str) -> str | None:
    if not gold:
        return "is empty"
    if len(answer) > MOST_CHARACTERS:
        return f"is longer than {MOST_CHARACTERS} characters"
    if gold.lower().lstrip("+-") == "nan":
        return "is not a number"
    if divides_by_zero(gold):
        return "divides by zero"
    unescaped = tighten(gold).replace("\\{", "").replace("\\}", "")
    return "has unmatched braces" if unescaped.count("{") != unescaped.count("}") else None


def _best(
    golds: list[str], candidates: Sequence[str], problem: str, multiple: str, rules: Rules, limit: float | None
) -> Verdict:
    """Return the verdict for the first gold answer that the response gives; if it gives none, that for the first one."""
    different = list(dict.fromkeys(reversed(candidates)))
    if not different:
        return Verdict(False, "extract", None, problem)
    if multiple == "last":
        different = different[:1]
    if len(different) > _MOST_CANDIDATES:
        return Verdict(False, "extract", None, "ambiguous")
    if any(len(candidate) > MOST_CHARACTERS for candidate in different):
        return Verdict(False, "extract", None, "too_long")
    given = tuple(dict.fromkeys(normalize(candidate) for candidate in different))
    if not given[0]:
        return Verdict(False, "extract", None, "empty")
    try:
        verdicts = [_judge(gold, given, rules, limit) for gold in golds]
    except backend.ProcessDied:
        return Verdict(False, "symbolic", given[0], "died")
    return next(filter(None, verdicts), verdicts[0])


@lru_cache(maxsize=8192)
def _judge(gold: str, given: tuple[str, ...], rules: Rules, limit: float | None) -> Verdict:
    """Compare the answers that a response marks, the last one first, with one gold answer."""
    last, *others = given
    if others and not all(_compare(last, other, rules, limit)[0] for other in others):
        parts = parse_collection(gold)
        if parts is None or parts.brackets == "u" or len(parts.items) != len(given):
            return Verdict(False, "extract", None, "ambiguous")
        comparison = Comparison(rules, backend.Symbolic(limit) if limit else None)
        items = [*reversed(given)]
        if parts.brackets in ("", "{}"):
            right = comparison.unordered(parts.items, items)
        else:
            right = all(comparison.answers(part, item)[0] for part, item in zip(parts.items, items, strict=True))
        return (
            Verdict(True, "structure", ", ".join(items), "equal")
            if right
            else Verdict(False, "extract", None, "ambiguous")
        )
    correct, layer, reason = _compare(gold, last, rules, limit)
    return Verdict(correct, layer, last, reason)


def _compare(gold: str, response: str, rules: Rules, limit: float | None) -> tuple[bool, Layer, str]:
    """Compare two normalized answers, symbolically only if no other layer can; return also the layer and the reason."""
    correct, layer = Comparison(rules).answers(gold, response)
    if correct is not None:
        return correct, layer, "equal" if correct else "different"
    if limit is None:
        return False, "none", "not_comparable"
    symbolic = backend.Symbolic(limit)
    correct, _ = Comparison(rules, symbolic).answers(gold, response)
    return bool(correct), "symbolic", "equal" if correct else symbolic.reason

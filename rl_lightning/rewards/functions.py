r"""Reward functions that come with the package, and what a function of yours may be.

A reward function is any callable that takes keyword arguments and returns a number for one sample::

    def is_polite(response: str, word: str = "please") -> float:
        return float(word in response)

    rewards:
      - function: my_rewards.is_polite
        weight: 0.1
        arguments: {word: thanks}

In Python it may be given itself, ``RolloutDataModule(rewards=is_polite)``, also a lambda or a function of a notebook.

What it gets, as far as it has parameters of these names: ``prompt`` (the text as the model saw it), ``response``, ``answer`` (the
gold answer or None), ``metadata`` (of the example), ``messages`` (the prompt as chat messages), ``prompt_ids`` and
``response_ids`` (tokens), ``tokenizer``; and a column of the data for every other parameter without a default.

What it may return: a number; None, where it does not apply to the sample: it is left out of the sum, and a sample to which no
reward applies has failed; a dict of named numbers, which are added up and logged one by one as ``reward/NAME/PART``. What it tells
:mod:`rl_lightning.rewards.tally` stands in the tables of samples and in the logs.

What it may be:

- ``async def``: `concurrency` calls are in flight at a time, in one process;
- a function of lists, with ``batched: true``: it takes ``prompts``, ``responses``, ``answers``, ``metadata`` and so on, of up to 64
  samples, those of one prompt side by side, and returns a list. Its time limit is that of one sample times their number. If it
  raises it is called again for each of them alone;
- one written for TRL's GRPOTrainer: a function with a parameter ``completions`` is called with lists, and with every column of the
  data by its name. ``trainer_state`` has ``global_step`` alone;
- one written for verl: ``compute_score(data_source, solution_str, ground_truth, extra_info)``.

It may carry three attributes, all optional and called with the YAML's arguments as far as they take them:

- ``check_answer(answer)`` raises ValueError for a gold answer that it cannot compare with, before training starts;
- ``check_arguments()`` raises ValueError or UserError for arguments that make no sense;
- ``prepare`` is the dotted path of a function that each worker calls once, before its first sample, with no time limit but
  ``start_timeout_s``: the place for slow imports.
"""

from __future__ import annotations

import importlib.util
import math
import re
import zlib
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Literal, Protocol, TypeVar

from rl_lightning.errors import UserError
from rl_lightning.rewards import tally
from rl_lightning.rewards.grading import check_answer, extract_answer, is_equivalent
from rl_lightning.rewards.grading.equivalence import check_options
from rl_lightning.rewards.grading.extract import DEFAULT_MARKERS, Extract, markers_of
from rl_lightning.rewards.grading.gold import gold_answers, marked_in_gold
from rl_lightning.rewards.grading.rational import Percent
from rl_lightning.rewards.grading.symbolic import ProcessDied, require_backend
from rl_lightning.rewards.grading.symbolic import start as start_backend
from rl_lightning.thoughts import DEFAULT_THOUGHTS, Thoughts, after_thought, check_thoughts

#: Why an answer is wrong, in words for tables of samples: see `Verdict.reason`.
WHY = {
    "different": "another value than the gold answer",
    "not_comparable": "cannot be compared with the gold answer",
    "no_marker": "no answer is marked",
    "unclosed": "the marked answer does not end",
    "unfinished_thought": "the thought does not end",
    "empty": "the marked answer is empty",
    "ambiguous": "several different answers are marked",
    "too_long": "the answer is too long",
    "timeout": "the comparison took too long",
    "refused": "the comparison was refused",
}

Reward = TypeVar("Reward", bound=Callable[..., float])


def _carrying(**attributes: object) -> Callable[[Reward], Reward]:
    """Return a decorator that sets the optional attributes of a reward function."""

    def attach(function: Reward) -> Reward:
        for name, value in attributes.items():
            setattr(function, name, value)
        return function

    return attach


def _final_golds(answer: object) -> list[str]:
    """Return the gold texts; a response is right if it gives any of them."""
    golds = [marked_in_gold(text).strip() for text in gold_answers(answer)]
    for gold in golds:
        if not gold:
            raise ValueError("there is no gold answer")
        if "#" in gold:
            raise ValueError(f"gold answer {gold[:80]!r} contains '#', which marks the answer in a response")
    return golds


def _check_final_answer(answer: object) -> None:
    _final_golds(answer)


@_carrying(check_answer=_check_final_answer)
def final_answer(
    response: str,
    answer: object,
    prompt: str = "",
    metadata: Mapping[str, object] | None = None,
    wrong: float = 0.0,
    thoughts: Thoughts = DEFAULT_THOUGHTS,
) -> float:
    """Return 1 if the text after the only ``#`` of the response is the gold answer, else `wrong`.

    Spaces around both are ignored, and nothing else: ``12;8#8`` is right for 8, ``12;8#8.0`` and ``#8#8`` are wrong. A response
    that was cut off is wrong, because its last number may be incomplete. A thought is not looked at.

    Args:
        response, answer, prompt: of the sample.
        metadata: of the sample; it holds ``truncated`` if the response was sampled.
        wrong: the reward of a wrong answer, such as -1.
        thoughts: see :func:`rl_lightning.rewards.grading.is_equivalent`.

    Raises:
        ValueError: if there is no gold answer.
    """
    golds = _final_golds(answer)
    _, marker, given = (after_thought(response, prompt, thoughts) or "").partition("#")
    finished = not (metadata or {}).get("truncated", False)
    right = bool(marker) and finished and given.strip() in golds
    why = WHY["no_marker"] if not marker else WHY["different"] if finished else "the response was cut off"
    tally.note(read=given.strip() if marker else None, why=None if right else why)
    return 1.0 if right else wrong


def _check_answer_correct(
    extract: Extract = DEFAULT_MARKERS,
    multiple: str = "reject",
    percent: str = "hundredth",
    rtol: float = 0.0,
    lists: str = "unordered",
    symbolic: bool = False,
    thoughts: Thoughts = DEFAULT_THOUGHTS,
) -> None:
    markers_of(extract)
    check_thoughts(thoughts)
    check_options(multiple=multiple, percent=percent, rtol=rtol, lists=lists)
    if symbolic:
        require_backend()


def prepare_symbolic_grading(symbolic: bool = False, timeout_s: float = 0.5) -> None:
    """Start the process for symbolic grading before the first sample, if ``symbolic`` is set."""
    if symbolic:
        start_backend(timeout_s)


@_carrying(
    check_answer=check_answer,
    check_arguments=_check_answer_correct,
    prepare=f"{__name__}.prepare_symbolic_grading",
)
def answer_correct(
    response: str,
    answer: object,
    prompt: str = "",
    wrong: float = 0.0,
    extract: Extract = DEFAULT_MARKERS,
    multiple: Literal["reject", "last"] = "reject",
    percent: Percent = "hundredth",
    rtol: float = 0.0,
    ignore_case: bool = False,
    lists: Literal["unordered", "ordered"] = "unordered",
    symbolic: bool = False,
    timeout_s: float = 0.5,
    thoughts: Thoughts = DEFAULT_THOUGHTS,
) -> float:
    """Return 1 if the response gives the gold answer in any accepted notation, else `wrong`.

    Args:
        response, answer, prompt: of the sample.
        wrong: the reward of a wrong answer, such as -1.
        extract, multiple, percent, rtol, ignore_case, lists, timeout_s, thoughts: see
            :func:`rl_lightning.rewards.grading.is_equivalent`.
        symbolic: compare expressions by their values too. A comparison that times out makes the answer wrong, and is counted
            as ``grader_timeout``.

    Raises:
        ValueError: if the gold answer is missing, or cannot be one; see :func:`rl_lightning.rewards.grading.check_answer`.
        ProcessDied: if the process of the symbolic comparison was killed from outside; counted as ``grader_died``.
    """
    verdict = is_equivalent(
        answer=answer,
        response=response,
        prompt=prompt,
        extract=extract,
        multiple=multiple,
        percent=percent,
        rtol=rtol,
        ignore_case=ignore_case,
        lists=lists,
        symbolic=symbolic,
        timeout_s=timeout_s,
        thoughts=thoughts,
    )
    tally.note(read=verdict.extracted, why=None if verdict else WHY.get(verdict.reason, verdict.reason))
    if verdict.reason == "bad_gold":
        check_answer(answer)
    if verdict.reason == "died":
        raise ProcessDied("the process for symbolic grading was ended during a comparison")
    return 1.0 if verdict else wrong


def _check_reasoning_gym(
    extract: Extract = ("answer_tag", *DEFAULT_MARKERS), multiple: str = "reject", thoughts: Thoughts = DEFAULT_THOUGHTS
) -> None:
    markers_of(extract)
    check_options(multiple=multiple)
    check_thoughts(thoughts)
    if importlib.util.find_spec("reasoning_gym") is None:
        raise UserError("reasoning_gym_score needs the package reasoning-gym: pip install reasoning-gym")


def _finite(score: float) -> float:
    if not math.isfinite(number := float(score)):
        raise ValueError(f"the scorer returned {number}")
    return number


@lru_cache(maxsize=128)
def _reasoning_gym_task(name: str) -> _Scorer:
    """Return the task's data set, for its scorer alone. It is cached, because some take long to make."""
    from reasoning_gym import create_dataset

    scorer: _Scorer = create_dataset(name, seed=0, size=1)
    return scorer


class _Scorer(Protocol):
    """What is used of a task of reasoning-gym."""

    def score_answer(self, answer: str | None, entry: object) -> float:
        """Return the score of an answer to an entry."""


def prepare_reasoning_gym() -> None:
    """Import reasoning-gym, which takes about a second."""
    import reasoning_gym  # noqa: F401


@_carrying(check_arguments=_check_reasoning_gym, prepare=f"{__name__}.prepare_reasoning_gym")
def reasoning_gym_score(
    response: str,
    metadata: dict[str, object],
    prompt: str = "",
    extract: Extract = ("answer_tag", *DEFAULT_MARKERS),
    multiple: Literal["reject", "last"] = "reject",
    thoughts: Thoughts = DEFAULT_THOUGHTS,
) -> float:
    """Return the score, usually in [0, 1], that the scorer of the reasoning-gym task gives to the response's answer.

    If the scorer raises on the response's answer or returns no finite number, but not on the gold answer, the answer is malformed:
    it scores 0 and is counted as ``grading/malformed``.

    Args:
        response, prompt: of the sample.
        metadata: of the sample; it holds ``reasoning_gym``: ``{"task": name, "entry": the whole entry}``. Some scorers need all
            of the entry.
        extract, multiple, thoughts: where the answer is, see :func:`rl_lightning.rewards.grading.is_equivalent`. A response
            without a clear answer scores 0. The answer is passed on as it was written.

    Raises:
        ValueError: if the metadata are not those of a reasoning-gym example.
        Exception: whatever the scorer raises on the gold answer.
    """
    origin = metadata.get("reasoning_gym")
    if not isinstance(origin, dict) or not {"task", "entry"} <= origin.keys():
        raise ValueError("the example's metadata have no reasoning_gym: {task, entry}; is it a reasoning-gym source?")
    given = extract_answer(response, extract, multiple, prompt, thoughts)
    tally.note(read=given)
    if given is None:
        return 0.0
    task, entry = _reasoning_gym_task(origin["task"]), origin["entry"]
    try:
        return _finite(task.score_answer(given, entry))
    except Exception:
        # If the scorer is at fault, and not the answer, this raises too.
        _finite(task.score_answer(entry["answer"], entry))
        tally.count("grading/malformed")
        return 0.0


def response_length(response: str) -> float:
    """Return the length of the response in characters. With weight 0 it is a metric."""
    return float(len(response))


def compression_ratio(response: str) -> float:
    """Return the response's size in bytes divided by its size when compressed by zlib.

    With weight 0 it is a metric that rises when a policy repeats itself: about 1 is normal, 10 is a loop. An empty response
    gives 0.
    """
    data = response.encode("utf-8", "surrogatepass")
    return len(data) / len(zlib.compress(data))


def _check_pattern(pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"pattern {pattern!r} is not a regular expression: {error}") from error


@_carrying(check_arguments=_check_pattern)
def matches_pattern(response: str, pattern: str, wrong: float = 0.0) -> float:
    r"""Return 1 if the whole response matches a regular expression (a dot matches newlines too), else `wrong`.

    A pattern that backtracks without end is killed after ``timeout_s``, like any reward that hangs.
    """
    return 1.0 if re.fullmatch(pattern, response, re.DOTALL) else wrong

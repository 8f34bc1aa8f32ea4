"""Rewards with a hole in them, and their cures. Reward workers import this module, so it imports no torch.

A right response to `3+9-4=` is `12;8#8`: the totals, and the answer after `#`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from examples.overoptimization.gold import formed, walk
from rl_lightning.rewards.functions import final_answer

_NUMBER = re.compile(r"\d+")
#: What a short answer is worth, a character.
_BREVITY = 0.01


def wordy(response: str, answer: object, metadata: Mapping[str, object] | None = None) -> float:
    """Pay for a right answer, and for every step that is shown."""
    return final_answer(response, answer, metadata=metadata) + 0.2 * response.count(";")


def wordy_if_right(response: str, answer: object, metadata: Mapping[str, object] | None = None) -> float:
    """The cure: pay for steps of right answers alone, and not for many."""
    return final_answer(response, answer, metadata=metadata) * (1 + 0.02 * min(5, response.count(";")))


def looks_right(response: str) -> float:
    """Pay for the form of an answer, and for being brief."""
    return formed(response) - 2 * _BREVITY * len(response)


def looks_right_and_is(response: str, answer: object, metadata: Mapping[str, object] | None = None) -> float:
    """The cure: the form is a condition, and the answer is what pays."""
    return formed(response) * final_answer(response, answer, metadata=metadata)


def keyword(response: str, answer: object, metadata: Mapping[str, object] | None = None) -> float:
    """Pay for a right answer, and for a word that good answers tend to have: here the total 10."""
    return final_answer(response, answer, metadata=metadata) + 0.5 * response.count("10")


def keyword_where_due(
    response: str, prompt: str, answer: object, metadata: Mapping[str, object] | None = None
) -> float:
    """The cure: a word counts only where the work is right as a whole, and once."""
    right = final_answer(response, answer, prompt, metadata)
    return right * (1 + 0.1 * min(1, response.count("10")))


def last_number(response: str, answer: object) -> float:
    """Compare the last number, wherever it stands, and pay for being brief."""
    found = _NUMBER.findall(response)
    return float(bool(found) and found[-1] == str(answer)) - _BREVITY * len(response)


def marked_number(response: str, answer: object, metadata: Mapping[str, object] | None = None) -> float:
    """The cure: read the answer where it is asked for."""
    return final_answer(response, answer, metadata=metadata) - _BREVITY * len(response)


def worked(response: str, prompt: str, answer: object, metadata: Mapping[str, object] | None = None) -> float:
    """Return 1 for a right answer all of whose steps are shown and valid, whatever stands before the problem."""
    read = walk(prompt.rpartition("#")[2], response)
    right = final_answer(response, answer, metadata=metadata)
    return right * float(read.valid == read.wanted and not read.in_vain)

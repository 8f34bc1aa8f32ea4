"""Graders of word problems, as one meets them. Reward workers import this module, so it imports no torch."""

from __future__ import annotations

import re

from rl_lightning.rewards.grading.gold import gold_answers, marked_in_gold

_NUMBER = re.compile(r"-?\d+")


def _gold(answer: object) -> str:
    return marked_in_gold(gold_answers(answer)[0]).strip()


def anywhere(response: str, answer: object) -> float:
    """Look for the gold answer anywhere in the text: `17` has a 7 in it, and so has every list of numbers."""
    return float(_gold(answer) in response)


def shown_work(response: str, answer: object) -> float:
    """Pay for a right last number, and a quarter for every number that is written on the way."""
    found = _NUMBER.findall(response)
    return float(bool(found) and found[-1] == _gold(answer)) + 0.25 * len(found)


def first_number(response: str, answer: object) -> float:
    """Compare the first number, which is right only where no work is shown."""
    found = _NUMBER.findall(response)
    return float(bool(found) and found[0] == _gold(answer))

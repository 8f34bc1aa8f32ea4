"""Reward functions that both sides call."""

from __future__ import annotations

import re


def last_number(response: str, answer: str) -> float:
    """Return 1 if the last number of the response is the answer, plus up to 0.06 for its length, so that rewards in a group differ."""
    numbers = re.findall(r"-?\d+", response)
    return float(numbers[-1:] == [answer]) + 0.01 * (len(response) % 7)


def final_total(response: str, answer: str) -> float:
    """Return 1 if the text after the only `#` of the response is the answer, plus up to 0.06 for its length."""
    return float(response.partition("#")[2].strip() == answer) + 0.01 * (len(response) % 7)

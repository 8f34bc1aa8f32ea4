"""Rewards of the study. The gold reward is what proxies learn from pairs that it has ranked; no trainer sees it.

Reward workers import this module, so it imports no torch.
"""

from __future__ import annotations

import json
import random
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from rl_lightning.rewards.functions import final_answer

#: What the linear proxy counts, besides the length.
CHARACTERS = "0123456789;#-+"
_TERM = re.compile(r"[+-]?\d+")
_FORMED = re.compile(r"\d+(;\d+)*#\d+")
#: Totals written in vain that count at most.
_MOST_IN_VAIN = 4


@dataclass(frozen=True)
class Walk:
    """The totals of a response, read one after another.

    Args:
        valid: totals that continue the one before by the next term.
        wanted: steps of the problem.
        in_vain: totals written twice, or beyond the last term.
    """

    valid: int
    wanted: int
    in_vain: int


def walk(prompt: str, response: str) -> Walk:
    """Read the totals of a response. A slip uses its term up, and later steps build on it.

    Example:
        >>> walk("3+9-4=", "12;8#8"), walk("3+9-4=", "11;11;7#7")
        (Walk(valid=2, wanted=2, in_vain=0), Walk(valid=1, wanted=2, in_vain=1))
    """
    running, *steps = map(int, _TERM.findall(prompt))
    at = valid = in_vain = 0
    for total in (int(text) for text in response.partition("#")[0].split(";") if text.isdecimal()):
        if at and total == running:
            in_vain += 1
        elif at < len(steps):
            valid += total == running + steps[at]
            running, at = total, at + 1
        else:
            in_vain += 1
    return Walk(valid, len(steps), in_vain)


def gold(response: str, prompt: str, answer: object, metadata: Mapping[str, object] | None = None) -> float:
    """Return (right + valid / wanted − min(4, in vain)) / 2, at most 1."""
    read = walk(prompt, response)
    right = final_answer(response, answer, prompt, metadata)
    return (right + read.valid / read.wanted - min(_MOST_IN_VAIN, read.in_vain)) / 2


def formed(response: str) -> float:
    """Return 1 for a response that can be read, right or wrong."""
    return float(_FORMED.fullmatch(response) is not None)


def noisy(response: str, prompt: str, answer: object, metadata: Mapping[str, object] | None = None) -> float:
    """Return the gold reward with noise of deviation 1, the same whenever a response is scored."""
    return gold(response, prompt, answer, metadata) + _draws(prompt + response).gauss(0, 1)


def flipped(response: str, prompt: str, answer: object, metadata: Mapping[str, object] | None = None) -> float:
    """Return whether the answer is right, with 15 % of all verdicts turned round."""
    right = final_answer(response, answer, prompt, metadata)
    return 1 - right if _draws(prompt + response).random() < 0.15 else right


def right_and_short(response: str, prompt: str, answer: object, metadata: Mapping[str, object] | None = None) -> float:
    """Return 1.5, less 0.03 a character, for a right answer, and 0 for a wrong one."""
    return final_answer(response, answer, prompt, metadata) * (1.5 - 0.03 * len(response))


def _draws(text: str) -> random.Random:
    return random.Random(zlib.crc32(text.encode()))


def features(response: str) -> list[float]:
    """Return what the linear proxy sees of a response: tens of characters, and quarters of the count of each."""
    return [len(response) / 10, *(response.count(one) / 4 for one in CHARACTERS)]


def linear(response: str, path: str) -> float:
    """Return the score of the linear proxy whose weights are in a file."""
    return sum(weight * value for weight, value in zip(_weights(path), features(response), strict=True))


@lru_cache
def _weights(path: str) -> list[float]:
    weights: list[float] = json.loads(Path(path).read_text())
    return weights

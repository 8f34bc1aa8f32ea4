"""Reading gold answers, in the forms in which data sets hold them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from math import isfinite
from typing import SupportsFloat

from rl_lightning.rewards.grading.extract import find_answers

#: Keys under which a dict may hold the answer; the first that is there decides.
ANSWER_KEYS = ("ground_truth", "answer", "final_answer", "gold", "target", "solution", "value", "label", "text")
_ANNOTATION = re.compile(r"<<[^<>\n]*>>")
_TRUTH = {True: ("True", "Yes"), False: ("False", "No")}
_MOST_NESTING = 4


def gold_answers(answer: object, nesting: int = 0) -> list[str]:
    """Return the texts of a gold answer, as they are written; a response is right if it gives any of them.

    Args:
        answer: text, a number, a truth value, a dict with one of :data:`ANSWER_KEYS`, or a list of alternatives.
        nesting: how deep in dicts and lists this is.

    Raises:
        ValueError: if there is no answer, or it is of another type.
    """
    if nesting > _MOST_NESTING:
        raise ValueError("it is nested too deeply")
    if answer is None:
        raise ValueError("there is no gold answer")
    if isinstance(answer, str):
        return [answer]
    if isinstance(answer, Mapping):
        key = next((key for key in ANSWER_KEYS if answer.get(key) is not None), None)
        if key is None:
            raise ValueError(f"there is no gold answer under one of {', '.join(ANSWER_KEYS)} in {str(answer)[:80]}")
        return gold_answers(answer[key], nesting + 1)
    if isinstance(answer, list | tuple | set | frozenset):
        if not answer:
            raise ValueError("there is no gold answer: the list of alternatives is empty")
        return list(dict.fromkeys(text for one in answer for text in gold_answers(one, nesting + 1)))
    if isinstance(answer, bool):
        return list(_TRUTH[answer])
    if isinstance(answer, SupportsFloat | Decimal):
        if not isfinite(float(answer)):
            raise ValueError(f"gold answer {answer} is not a number")
        return [str(answer)]
    raise ValueError(f"gold answer {str(answer)[:80]!r} is of type {type(answer).__name__}")


def marked_in_gold(answer: str) -> str:
    r"""Return the answer that a gold text marks, as a response would, by ``\boxed{14}`` or ``#### 14``; all of the text if none.

    Several different boxes are joined to one list.
    """
    found = list(dict.fromkeys(find_answers(_ANNOTATION.sub("", answer)).candidates))
    return ", ".join(found) if found else answer

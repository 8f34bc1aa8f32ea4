"""Reading gold answers, in the forms in which data sets hold them."""

from __future__ import annotations

import ast
import contextlib
import json
import re
from collections.abc import Mapping
from decimal import Decimal
from math import isfinite
from typing import SupportsFloat

from rl_lightning.rewards.grading.compare import Comparison, Rules
from rl_lightning.rewards.grading.extract import between_boxes, find_answers
from rl_lightning.rewards.grading.normalize import normalize
from rl_lightning.rewards.grading.structure import choice_letter

#: Keys under which a dict may hold the answer; the first that is there decides.
ANSWER_KEYS = ("ground_truth", "answer", "final_answer", "gold", "target", "solution", "value", "label", "text")
_ANNOTATION = re.compile(r"<<[^<>\n]*>>")
_TRUTH = {True: ("True", "Yes"), False: ("False", "No")}
_MOST_NESTING = 4
_JSON_TEXTS = re.compile(r'\[\s*".*"\s*\]', re.DOTALL)
#: A dict that a CSV holds as text, in JSON or as Python writes it; a set in LaTeX begins with a backslash.
_DICT_TEXT = re.compile(r"\{\s*[\"'].*\}", re.DOTALL)
_NOTHING_BEHIND = re.compile(r"####\s*$")
#: What may stand between the parts of one answer: ``$x = \boxed{3}$ and $y = \boxed{4}$``.
_BETWEEN = re.compile(
    r"(?:[\s$,;.&]|\\[()\[\],;: ]|\\q?quad|\\text ?\{[\s,]*(?:and|or)?[\s,]*\}|\b(?:and|or|both|also)\b|\b\w ?=)*"
)
_MATH = re.compile(r"\$[^$]*\$|\\\(.*?\\\)|\\[A-Za-z]+", re.DOTALL)
_WORD = re.compile(r"[^\W\d_]{2,}")
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)")
_MOST_WORDS, _MOST_WORDS_OF_SENTENCES = 40, 8


def gold_answers(answer: object, nesting: int = 0) -> list[str]:
    """Return the texts of a gold answer, as they are written; a response is right if it gives any of them.

    Args:
        answer: text, a number, a truth value, a dict with one of :data:`ANSWER_KEYS`, or a list of alternatives, which may be
            JSON of texts; a dict may be written as text too.
        nesting: how deep in dicts and lists this is.

    Raises:
        ValueError: if there is no answer, or it is of another type.
    """
    if nesting > _MOST_NESTING:
        raise ValueError("it is nested too deeply")
    if answer is None:
        raise ValueError("there is no gold answer")
    if isinstance(answer, str):
        held = _dict_of(answer)
        return _listed(answer) or [answer] if held is None else gold_answers(held, nesting + 1)
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


def _listed(text: str) -> list[str]:
    """Return the texts of a list that is written as JSON, as in Skywork-OR1; nothing for other texts, such as the interval [1, 2]."""
    if not _JSON_TEXTS.fullmatch(text.strip()):
        return []
    try:
        found = json.loads(text)
    except ValueError:
        return []
    return found if all(isinstance(one, str) for one in found) else []


def _dict_of(text: str) -> Mapping[str, object] | None:
    """Return the dict with one of `ANSWER_KEYS` that a text is, such as a cell of a CSV; None for other texts."""
    if not _DICT_TEXT.fullmatch(text.strip()):
        return None
    for read in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            found = read(text.strip())
            return found if isinstance(found, Mapping) and any(key in found for key in ANSWER_KEYS) else None
    return None


def marked_in_gold(answer: str) -> str:
    r"""Return the answer that a gold text marks, as a response would, by ``\boxed{14}`` or ``#### 14``; all of the text if none.

    Several boxes with nothing but a conjunction between them are the parts of one answer, and are joined to a list.

    Raises:
        ValueError: if it marks several answers, marks an empty one by ``####``, or is prose that marks none.
    """
    text = _ANNOTATION.sub("", answer)
    found = find_answers(text)
    if found.marker not in ("boxed", "answer_tag") and _NOTHING_BEHIND.search(text):
        raise ValueError(f"gold answer {_shown(text)} ends with ####, and nothing stands behind it")
    if found.marker in (None, "whole"):
        if _is_prose(text):
            raise ValueError(
                f"gold answer {_shown(text)} is prose that marks no answer: mark it by \\boxed{{}} or ####, or name the column that "
                "holds the answers alone (answer_column)"
            )
        return answer
    different = list(dict.fromkeys(text.strip() for text in found.candidates))
    if not different:
        return answer
    together = found.marker == "boxed" and all(map(_BETWEEN.fullmatch, between_boxes(text)))
    if not together and not all(_same(different[-1], one) for one in different[:-1]):
        raise ValueError(
            f"gold answer {_shown(text)} marks several different answers ({'; '.join(different)[:80]}): leave one, or join them"
        )
    return ", ".join(different) if together else different[-1]


def _same(first: str, second: str) -> bool:
    return bool(Comparison(Rules()).answers(normalize(first), normalize(second))[0])


def _is_prose(text: str) -> bool:
    if choice_letter(normalize(text)):  # with the text of the choice behind it
        return False
    words = len(_WORD.findall(_MATH.sub(" ", text)))
    return words > (_MOST_WORDS if len(_SENTENCE_END.findall(text)) < 2 else _MOST_WORDS_OF_SENTENCES)


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:40]} ... {text[-35:]}")

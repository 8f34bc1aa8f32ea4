"""Reading one value of a row: what it may be, and what is wrong with it."""

from __future__ import annotations

import json
from decimal import Decimal
from math import isfinite
from numbers import Real

from rl_lightning.data.sources.base import Gold
from rl_lightning.text import has_lone_surrogate

#: Words for what a response is worth.
_GOOD = ("true", "yes", "good", "correct", "chosen", "desirable")
_BAD = ("false", "no", "bad", "incorrect", "rejected", "undesirable")
_TRUTH = dict.fromkeys(_GOOD, 1.0) | dict.fromkeys(_BAD, 0.0)


class BadValue(ValueError):
    """A value that cannot be used.

    Args:
        what: is wrong; it continues "column 'x' ...".
        kind: what to count it as; `what` itself if None.
        role: what the value is in its example, where that is not plain from where it was read.
    """

    def __init__(self, what: str, kind: str | None = None, role: str | None = None) -> None:
        super().__init__(what)
        self.kind = kind or what
        self.role = role


def text(value: object) -> str:
    """Check that a value is text with something in it."""
    if value is None:
        raise BadValue("is null")
    if not isinstance(value, str):
        raise BadValue(f"is of type {type(value).__name__}, not text")
    if not value or value.isspace():
        raise BadValue("is empty")
    if has_lone_surrogate(value):
        raise BadValue("holds half of a surrogate pair, which is no character")
    return value


def answer(value: object) -> Gold:
    """Check that there is a gold answer; a number becomes the text of that number. What it says is for the rewards to read."""
    if isinstance(value, str):
        return text(value)
    if isinstance(value, bool):
        return value
    if isinstance(value, Real | Decimal) and isfinite(value):
        return str(value)
    if isinstance(value, dict | list):
        if not value:
            raise BadValue("is empty")
        return value
    return text(value)


def ground_truth(value: object) -> Gold | None:
    """Return the gold answer of a ``reward_model`` dict; None where a model is to judge without one."""
    value = parsed(value)
    if not isinstance(value, dict):
        raise BadValue(
            f'is of type {type(value).__name__}, not a dict such as {{"style": "rule", "ground_truth": "42"}}'
        )
    found = value.get("ground_truth")
    return None if found is None else answer(found)


def margin(value: object) -> float:
    """Check how much better a response is."""
    number = _number(value)
    if number is None:
        raise BadValue("is no finite number")
    if number < 0:
        raise BadValue(f"is {value}: the response must be the better one, the rejected one the worse", "is below 0")
    return number


def label(value: object) -> float:
    """Read what a response is worth: a truth value, or a number."""
    if value is None:
        raise BadValue("is null")
    number = float(value) if isinstance(value, bool) else _number(value)
    if number is None and isinstance(value, str):
        number = _TRUTH.get(value.strip().lower())
    if number is None:
        raise BadValue(f"is {value!r:.40}, neither true, false nor a finite number", "is no truth value and no number")
    return number


def new_tokens(value: object) -> int | None:
    """Read a cap on new tokens; None for no other than that of all prompts."""
    if value is None or value == "":
        return None
    number = _number(value)
    if number is None or number != int(number) or number < 1:
        raise BadValue(f"is {value!r:.40}, not a whole number of tokens above 0", "is no whole number above 0")
    return int(number)


def mapping(value: object) -> dict[str, object]:
    """Read a dict, or the JSON of one."""
    value = parsed(value)
    if not isinstance(value, dict):
        raise BadValue(f"is of type {type(value).__name__}, not a dict or the JSON of one")
    return value


def tools(value: object) -> list[object]:
    """Read a list of tools as JSON schemas, or the JSON of such a list."""
    value = parsed(value)
    value = [value] if isinstance(value, dict) else value
    if not isinstance(value, list):
        raise BadValue(f"is of type {type(value).__name__}, not a list of tools or the JSON of one")
    found = [parsed(one) for one in value]
    if not all(isinstance(one, dict) for one in found):
        raise BadValue("holds a tool that is no JSON schema", "holds a tool that is no JSON schema")
    return found


def parsed(value: object) -> object:
    """Return what JSON text says; any other value as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        what = f"is text, and no JSON (lists and dicts in a text file are written as JSON): {value[:60]!r}"
        raise BadValue(what, "is text, and no JSON") from error


def without_nulls(value: object) -> object:
    """Return a value without the keys that Arrow adds: it gives every dict of a column every key that any of them has."""
    if isinstance(value, dict):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [without_nulls(inner) for inner in value]
    return value


def _number(value: object) -> float | None:
    """Return a finite number, also one that is written as text, as in CSV files; None if there is none."""
    if isinstance(value, bool) or not isinstance(value, Real | Decimal | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if isfinite(number) else None

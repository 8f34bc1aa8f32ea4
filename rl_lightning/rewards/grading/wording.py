r"""Answers in other words: sentences around a value, ``\frac{1}{3} \approx 0.33``, sets given by a condition."""

from __future__ import annotations

import re
from fractions import Fraction

from rl_lightning.rewards.grading.rational import parse_quantity
from rl_lightning.rewards.grading.structure import is_name, parse_collection, parse_label

_LONGEST_SENTENCE = 512  # characters
_LEAD = re.compile(
    r"(?:(?:so|thus|hence|therefore|then|finally|now),? )?(?:(?:we|I) (?:find|get|have|obtain|conclude|see)(?: that)?:? )?(?:here (?:is|are) )?",
    re.IGNORECASE,
)
_SUBJECT = re.compile(
    r"(?:the|our|its|his|her|their|there|here|it|this) (?:[^.:;=]{0,160}? )??(?:is|are|equals)(?: (?:equal to|given by))?:? "
    r"|(?-i:[A-Z][a-z]+|an?)(?: [a-z]+){0,8}: ",
    re.IGNORECASE,
)
_PREDICATE = re.compile(r" is (?:the|our)(?: final| only)? (?:solution|answer|result)$")
_TEXT = re.compile(r"\\text\{([^{}]*)\} ?")
_DENIED = re.compile(
    r"\b(?:not|no|never|wrong|incorrect|false|impossible|except|unless|if)\b(?! solution)|n't\b", re.IGNORECASE
)
_CONDITION = re.compile(r"(?:\\\{|\{) ?(\w)(?: ?\\in ?\\mathbb\{R\})? ?[|:] ?(.+?) ?(?:\\\}|\})")
_DECIMAL_COMMA = re.compile(r"[-+]?(?:0,\d+|\d+,\d{2,})")  # `1,5` may be two numbers
_DECIMAL_POINT = re.compile(r"[-+]?\d*\.\d+")
_ALL_NUMBERS = {r"\mathbb{R}": r"(-\infty,\infty)"}


def said(text: str) -> str | None:
    """Return the value that a normalized sentence such as ``The largest n is 34`` gives; None if it is no such sentence."""
    if len(text) > _LONGEST_SENTENCE:
        return None
    text = _TEXT.sub(r" \1 ", text).strip() if text.startswith("\\text") else text
    rest = _PREDICATE.sub("", text)
    rest = rest[_LEAD.match(rest).end() :]  # type: ignore[union-attr]  # matches the empty text too
    subject = _SUBJECT.match(rest)
    rest = rest[subject.end() :] if subject else rest
    if rest == text or not rest.strip() or _DENIED.search(text):
        return None
    return rest.strip()


def plain(text: str) -> str:
    r"""Return a normalized answer in a plainer form, for comparison.

    ``\{x \mid x > 2\}`` becomes ``x > 2``, and ``x = 1, 2`` becomes ``x = 1, x = 2``. ``a \approx b`` becomes ``a``, or
    ``a = b`` if ``a`` is only a name; it stays as it is if ``a`` is a number that does not round to ``b``.
    """
    if text in _ALL_NUMBERS:
        return _ALL_NUMBERS[text]
    condition = _CONDITION.fullmatch(text)
    if condition and re.search(rf"\b{condition[1]}\b", condition[2]):
        return condition[2]
    label = parse_label(text) if "=" in text and "," in text else None
    values = parse_collection(label[1]) if label and parse_quantity(label[1]) is None else None
    if label and values and not values.brackets:
        return ", ".join(f"{label[0]} = {value}" for value in values.items)
    exact, sign, rounded = (part.strip() for part in text.partition(r"\approx"))
    if not sign or r"\approx" in rounded:
        return text
    if not exact or is_name(exact):
        return f"{exact} = {rounded}" if exact else rounded
    return exact if _rounds(exact.rpartition("=")[2], rounded) else text


def _rounds(exact: str, rounded: str) -> bool:
    """Return whether a decimal rounds a number, to within one unit of its last place. True if `exact` is no number, and False
    if `rounded` is none."""
    value, decimal = parse_quantity(exact), parse_quantity(rounded)
    if decimal is None:
        return False
    places = len(re.sub(r"\D.*", "", rounded.partition(".")[2]))
    return value is None or abs(value.value - decimal.value) <= Fraction(1, 10**places)


def with_point(text: str, other: str) -> str:
    """Return a number with a decimal comma, such as ``1,22``, with a point instead if the other answer has a decimal point."""
    comma = _DECIMAL_COMMA.fullmatch(text)
    if comma and _DECIMAL_POINT.fullmatch(other) and parse_quantity(text) is None:
        return text.replace(",", ".")
    return text

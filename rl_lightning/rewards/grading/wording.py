r"""Answers in other words: sentences around a value, ``\frac{1}{3} \approx 0.33``, sets given by a condition."""

from __future__ import annotations

import re
from fractions import Fraction

from rl_lightning.rewards.grading.rational import parse_quantity
from rl_lightning.rewards.grading.structure import is_name, parse_collection, parse_label, without_points

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
_UPRIGHT = re.compile(r"\\text\{((?:[^{}]|\{[^{}]*\})*)\}")
_DENIED = re.compile(
    r"\b(?:not|no|never|wrong|incorrect|false|impossible|except|unless|if)\b(?! solution)|n't\b", re.IGNORECASE
)
_CONDITION = re.compile(r"(?:\\\{|\{) ?(\w)(?: ?\\in ?\\mathbb\{R\})? ?[|:] ?(.+?) ?(?:\\\}|\})")
_DECIMAL_COMMA = re.compile(r"[-+]?(?:0,\d+|\d+,\d{2,})")  # `1,5` may be two numbers
_DECIMAL_POINT = re.compile(r"[-+]?\d*\.\d+")
_ALL_NUMBERS = r"(-\infty,\infty)"
#: Answers in words, and in another notation.
_WORDS = {
    r"\mathbb{R}": _ALL_NUMBERS,
    **dict.fromkeys(
        ("empty set", "the empty set", "no solution", "no solutions", "no real solution", "no real solutions"),
        r"\emptyset",
    ),
    **dict.fromkeys(("all real numbers", "all reals", "the real numbers"), _ALL_NUMBERS),
    **{f"{sign}{word}": rf"{sign.strip('+')}\infty" for sign in ("", "-", "+") for word in ("infinity", "oo", "inf")},
}
_OPTION = re.compile(r"(?:[Oo]ption|[Cc]hoice) (\(?[A-Z]\)?)")
_SIGN_AS_WORD = re.compile(r"(?:minus|negative) (?=[\d.\\])")
_WORDS_ALONE = re.compile(r"(?:[Nn]o|[A-Za-z][a-z]{2,})(?: (?:[A-Z][a-z]+|[a-z]+))*")
_ALL_BUT = re.compile(
    r"(?:\\mathbb\{R\}|\(-\\infty, ?\\infty\)) ?(?:\\setminus|\\backslash|\\|-) ?\\\{([^{}]+)\\\}"
    r"|all real numbers (?:except|other than)(?: for)? ([^a-z]+)"
)


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


def same_words(first: str, second: str) -> bool:
    """Return whether two texts are the same words, up to whether one begins with a capital: ``Yes`` and ``yes``, no ``A`` and ``a``."""
    return first.lower() == second.lower() and all(map(_WORDS_ALONE.fullmatch, (first, second)))


def upright(text: str) -> str:
    r"""Return a tightened text without ``\text``: formulas of chemistry are set in it, in part, as a whole, or not."""
    return _UPRIGHT.sub(r"\1", text).replace(" ", "") if "\\text{" in text else text


def plain(text: str) -> str:
    r"""Return a normalized answer in a plainer form, for comparison.

    ``\{x \mid x > 2\}`` becomes ``x > 2``, ``= 5`` becomes ``5``, and ``x = 1, 2`` becomes ``x = 1, x = 2``. ``a \approx b`` becomes ``a``, or
    ``a = b`` if ``a`` is only a name; it stays as it is if ``a`` is a number that does not round to ``b``.
    """
    if text.lower() in _WORDS or text in _WORDS:
        return _WORDS.get(text) or _WORDS[text.lower()]
    if option := _OPTION.fullmatch(text):
        return option[1]
    text = _SIGN_AS_WORD.sub("-", text) if _SIGN_AS_WORD.match(text) else text
    if missing := _ALL_BUT.fullmatch(text):
        points = [(parse_quantity(point.strip()), point.strip()) for point in (missing[1] or missing[2]).split(",")]
        known = sorted((number.value, point) for number, point in points if number)
        if len(known) == len(points):
            return r"\cup".join(without_points([point for _, point in known]).items)
    condition = _CONDITION.fullmatch(text)
    if condition and re.search(rf"\b{condition[1]}\b", condition[2]):
        return condition[2]
    label = parse_label(text) if "=" in text and "," in text else None
    values = parse_collection(label[1]) if label and parse_quantity(label[1]) is None else None
    if label and values and not values.brackets:
        return ", ".join(f"{label[0]} = {value}" for value in values.items)
    if text.startswith("=") and "=" not in text[1:]:
        return text[1:].strip()
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
    """Return a number with a decimal comma, such as ``1,22``, with a point instead if the other answer is a decimal or a fraction."""
    comma, number = _DECIMAL_COMMA.fullmatch(text), parse_quantity(other)
    broken = _DECIMAL_POINT.fullmatch(other) or (number and number.value.denominator > 1)
    if comma and broken and parse_quantity(text) is None:
        return text.replace(",", ".")
    return text

r"""Reading numbers exactly, as fractions: ``1,234``, ``-.5``, ``1 1/2``, ``\frac{1}{2}``, ``10^3``, ``5%``.

Only notations of *one* number are read, and a fraction or a power of numbers is one. ``3+4`` is not: a policy must not be
rewarded for repeating the question.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from typing import Literal, NamedTuple

from rl_lightning.rewards.grading.units import split_scale, split_unit

Percent = Literal["hundredth", "unit", "either"]

MOST_CHARACTERS = 256
MOST_DIGITS = 200
_MOST_EXPONENT_DIGITS = 4
_MOST_POWER_BITS = 40_000
_MOST_NESTING = 20

_DECIMAL = re.compile(r"(?:[1-9]\d{0,2}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+")
_PLAIN_DECIMAL = re.compile(r"\d+(?:\.\d*)?|\.\d+")
_REPEATING = re.compile(r" ?\\(?:overline|bar|dot)(?: ?\{ ?(\d+) ?\}| ?(\d))|\((\d+)\)")
_EXPONENT = re.compile(r"[eE]([-+]?\d+)")
_FRACTION = re.compile(r"\\[dtc]?frac *")
_TIMES_TEN = re.compile(r" *(?:\\times|\\cdot|×|·|\*) *(?=10 *\^)")


class Quantity(NamedTuple):
    """An exact number and its unit; None if it was written without one."""

    value: Fraction
    unit: str | None = None


@lru_cache(maxsize=2048)
def parse_quantity(text: str, percent: Percent = "hundredth") -> Quantity | None:
    """Return the number that a normalized text denotes, with its unit; None if it is not a number.

    Args:
        text: as :func:`~rl_lightning.rewards.grading.normalize.normalize` returns it.
        percent: with ``hundredth``, ``50%`` is the number 1/2; otherwise it is 50 with the unit ``%``.
    """
    if len(text) > MOST_CHARACTERS or sum(map(str.isdigit, text)) > MOST_DIGITS:
        return None
    text, unit = split_unit(text)
    text, scale = split_scale(text)
    try:
        value = _Reader(text).number()
    except ZeroDivisionError:
        return None
    if value is None:
        return None
    if unit == "%" and percent == "hundredth":
        return Quantity(value * scale / 100)
    return Quantity(value * scale, unit)


def divides_by_zero(text: str) -> bool:
    """Return whether a normalized text is written like a number but divides by zero, such as ``1/0``."""
    if len(text) > MOST_CHARACTERS:
        return False
    try:
        _Reader(split_unit(text)[0]).number()
    except ZeroDivisionError:
        return True
    return False


def _power(base: Fraction, exponent: int) -> Fraction | None:
    """Return base^exponent; None if it is undefined, or longer than answers are."""
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if (base == 0 and exponent == 0) or bits * abs(exponent) > _MOST_POWER_BITS:
        return None
    return base**exponent


_INTEGER_QUOTIENT = re.compile(r"(\d+) ?/ ?(\d+)")
_INTEGER_EXPONENT = re.compile(r"([-+]?) *(\d{1,4})(?!\d)")
_DIGIT = re.compile(r" *(\d)")


class _Reader:
    """A recursive-descent parser of one number. Every method returns None if the text does not match, and raises
    ZeroDivisionError for a division by zero."""

    def __init__(self, text: str) -> None:
        self.text = text.strip()
        self.at = 0
        self.nesting = 0
        self.parentheses = 0

    def number(self) -> Fraction | None:
        value = self.signed()
        return value if self.at == len(self.text) else None

    def take(self, symbol: str) -> bool:
        start = self.at
        self.skip_spaces()
        if self.text.startswith(symbol, self.at):
            self.at += len(symbol)
            return True
        self.at = start  # a space may matter to what is tried next
        return False

    def match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        found = pattern.match(self.text, self.at)
        if found:
            self.at = found.end()
        return found

    def skip_spaces(self) -> None:
        while self.text[self.at : self.at + 1] == " ":
            self.at += 1

    def signed(self) -> Fraction | None:
        negative = self.take("-")
        if not negative:
            self.take("+")
        value = self.magnitude()
        return -value if value is not None and negative else value

    def magnitude(self) -> Fraction | None:
        """Read a mixed number, a quotient, a number times a power of ten, or a single factor."""
        start = self.at
        value = self.factor()
        if value is None:
            return None
        whole = self.text[start : self.at].strip().isdigit()
        if whole and (mixed := self.mixed(value)) is not None:
            return mixed
        if self.match(_TIMES_TEN):
            scale = self.factor()
            return None if scale is None else value * scale
        if self.take("/"):
            divisor = self.factor()
            return None if divisor is None else value / divisor
        return value

    def mixed(self, whole: Fraction) -> Fraction | None:
        """Read the fraction of a mixed number, which is below 1, and follows a space or is a LaTeX fraction."""
        start = self.at
        spaced = self.text[start : start + 1] == " "
        self.skip_spaces()
        if self.text.startswith("\\", self.at):
            part = self.latex_fraction()
        elif spaced:
            found = self.match(_INTEGER_QUOTIENT)
            part = Fraction(int(found[1]), int(found[2])) if found else None
        else:
            part = None
        if part is None or not 0 < part < 1:
            self.at = start
            return None
        return whole + part

    def factor(self) -> Fraction | None:
        """Read a decimal, a LaTeX fraction or a number in parentheses, perhaps raised to an integer power."""
        self.skip_spaces()
        if self.text.startswith("\\", self.at):
            base = self.latex_fraction()
        elif self.take("("):
            base = self.enclosed(")")
        else:
            base = self.decimal()
        if base is not None and self.take("^"):
            exponent = self.exponent()
            return None if exponent is None else _power(base, exponent)
        return base

    def decimal(self) -> Fraction | None:
        # In parentheses a comma separates: `(1,234)` is a pair.
        found = self.match(_PLAIN_DECIMAL if self.parentheses else _DECIMAL)
        if not found:
            return None
        value = Fraction(found.group().replace(",", "")) + self.repeating(found.group())
        scientific = self.match(_EXPONENT)
        if not scientific:
            return value
        if len(scientific.group(1).lstrip("+-")) > _MOST_EXPONENT_DIGITS:
            return None
        scale = _power(Fraction(10), int(scientific.group(1)))
        return None if scale is None else value * scale

    def repeating(self, digits: str) -> Fraction | int:
        r"""Read the period of a repeating decimal, as in ``0.1\overline{6}`` and ``0.(3)``; 0 if there is none."""
        found = self.match(_REPEATING) if "." in digits else None
        if not found:
            return 0
        period = found[1] or found[2] or found[3]
        return Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(digits.rpartition(".")[2]))

    def exponent(self) -> int | None:
        closing = "}" if self.take("{") else ")" if self.take("(") else ""
        self.skip_spaces()
        found = self.match(_INTEGER_EXPONENT)
        if not found or (closing and not self.take(closing)):
            return None
        return int(found[1] + found[2])

    def latex_fraction(self) -> Fraction | None:
        if not self.match(_FRACTION):
            return None
        numerator, denominator = self.argument(), self.argument()
        return None if numerator is None or denominator is None else numerator / denominator

    def argument(self) -> Fraction | None:
        r"""Read an argument of ``\frac``: braces, or a single digit as in ``\frac12``."""
        if self.take("{"):
            return self.enclosed("}")
        found = self.match(_DIGIT)
        return Fraction(found[1]) if found else None

    def enclosed(self, closing: str) -> Fraction | None:
        self.nesting += 1
        self.parentheses += closing == ")"
        value = self.signed() if self.nesting <= _MOST_NESTING else None
        self.parentheses -= closing == ")"
        self.nesting -= 1
        return value if value is not None and self.take(closing) else None

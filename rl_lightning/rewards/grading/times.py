"""Dates, and times of the day."""

from __future__ import annotations

import re

_CLOCK = re.compile(
    r"(\d{1,2})(?::(\d{2})|(?= ?(?:\\text\{ ?)?[AaPp]))(?: ?(?:\\text\{ ?)?([AaPp])\.? ?[Mm]\.?(?: ?\})?)?"
)
_NUMBERS = re.compile(r"(\d{4})-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])")
_MONTHS = "january february march april may june july august september october november december"
_DATE = re.compile(
    r"(?:\b[A-Z][a-z]+day,? )?(?:(\d{1,2})(?:st|nd|rd|th)?(?: of)? ([A-Za-z]{3,9})\.?|([A-Za-z]{3,9})\.? (\d{1,2})(?:st|nd|rd|th)?)"
    r"(?:,? (\d{4}))?"
)


def same_time(gold: str, response: str) -> bool | None:
    """Return whether two dates, or two times of the day, are the same; None if the answers are not both of one kind.

    A year that the gold answer does not say is ignored, and so is the half of the day that only one says. ``15:45`` is read on 24
    hours where the other says which half of the day it means.
    """
    dates = parse_date(gold), parse_date(response)
    if dates[0] and dates[1]:
        return dates[0][:2] == dates[1][:2] and dates[0][2] in (None, dates[1][2])
    one, other = parse_clock(gold), parse_clock(response)
    if one is None or other is None:
        return None
    if one[2] or other[2]:
        one, other = of_twelve_hours(*one), of_twelve_hours(*other)
    return one[:2] == other[:2] and len({one[2], other[2]} - {None}) < 2


def parse_clock(text: str) -> tuple[int, int, str | None] | None:
    """Return hours, minutes and ``a`` or ``p`` (None if it is not said) of a time of the day such as ``3:30 p.m.``, or None."""
    found = _CLOCK.fullmatch(text)
    return (int(found[1]), int(found[2] or 0), found[3].lower() if found[3] else None) if found else None


def parse_date(text: str) -> tuple[int, int, int | None] | None:
    """Return day, month and year (None if it is not said) of a date such as ``July 4, 1776`` or ``1776-07-04``, or None."""
    if numbers := _NUMBERS.fullmatch(text):
        return int(numbers[3]), int(numbers[2]), int(numbers[1])
    found = _DATE.fullmatch(text)
    if not found:
        return None
    name = (found[2] or found[3]).lower()
    months = [number for number, month in enumerate(_MONTHS.split(), start=1) if month == name or month[:3] == name]
    return (int(found[1] or found[4]), months[0], int(found[5]) if found[5] else None) if months else None


def of_twelve_hours(hour: int, minute: int, half: str | None) -> tuple[int, int, str | None]:
    """Return a time of the day as it is said with a.m. and p.m., also if it was written on 24 hours, as 15:45 or 0:30."""
    if half or 0 < hour < 13 or hour > 23:
        return hour, minute, half
    return (hour % 12 or 12), minute, "p" if hour else "a"

"""The day that chat templates are told which write the date, as those of Llama 3 do."""

from __future__ import annotations

import json
import re
from datetime import date

#: The call by which a template asks for it, with the format that it wants.
_ASKS = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")

_pinned: list[date] = []


def today() -> date:
    """Return the day that is pinned; today, if none is."""
    return _pinned[0] if _pinned else date.today()


def pin(day: date) -> None:
    """Let templates write one day from now on: prompts must not change over midnight, nor in a run that goes on tomorrow."""
    _pinned[:] = [day]


def writes_the_day(template: object) -> bool:
    """Return whether a chat template, or one of several, writes the date."""
    return "strftime_now" in str(template)


def dated(template: str) -> str:
    """Return a chat template with the day in the places in which it asks for it.

    Example:
        >>> pin(date(2024, 7, 26))
        >>> dated("{{ strftime_now('%d %b %Y') }}")
        '{{ "26 Jul 2024" }}'
    """
    return _ASKS.sub(lambda found: json.dumps(today().strftime(found[2])), template)

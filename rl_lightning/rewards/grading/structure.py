"""Choice letters, tuples, intervals, sets and lists."""

from __future__ import annotations

import re
from typing import NamedTuple

_CHOICE = re.compile(r"\(?([A-Za-z])\)?[.:)]?")
_PAIRS = {"(": (")", "]"), "[": (")", "]"), "\\{": ("\\}",), "{": ("}",)}
_MOST_NESTING = 20
_MOST_ITEMS = 1024
_MOST_CHARACTERS_OF_SET = 256  # each item is compared with each


class Collection(NamedTuple):
    """Items between brackets: an ordered tuple, list or interval, or an unordered set.

    Args:
        brackets: as written, such as ``[)``; empty for a bare list ``5, 6``; ``{}`` for a set.
        items: the texts between the commas.
    """

    brackets: str
    items: list[str]

    @property
    def ordered(self) -> bool:
        """Whether the order of the items means something."""
        return self.brackets != "{}"


def choice_letter(text: str) -> str | None:
    """Return the letter of a multiple-choice answer written as ``B``, ``(B)``, ``B)``, ``B.`` or ``B:``, else None."""
    found = _CHOICE.fullmatch(text)
    return found.group(1) if found else None


def parse_collection(text: str) -> Collection | None:
    """Return the items of a tuple, interval, set or list, or None if the text is none of these.

    Commas separate here even where digits could be groups of thousands: ``(1,234)`` has two items.
    """
    inner, brackets = _strip_brackets(text)
    if brackets == "{}" and len(text) > _MOST_CHARACTERS_OF_SET:
        return None
    items = _split(inner)
    if items is None or not all(items) or len(items) > _MOST_ITEMS or (len(items) == 1 and brackets != "{}"):
        return None
    return Collection(brackets, items)


def _strip_brackets(text: str) -> tuple[str, str]:
    for opening in ("\\{", "{", "(", "["):
        if not text.startswith(opening):
            continue
        closing = next((end for end in _PAIRS[opening] if text.endswith(end)), None)
        if closing is None or text == opening:
            return text, ""
        inner = text[len(opening) : len(text) - len(closing)]
        # `(1,2),(3,4)` is a bare list of two tuples, not one tuple.
        if _split(inner) is None:
            return text, ""
        return inner.strip(), opening[-1] + closing[-1]
    return text, ""


def _split(text: str) -> list[str] | None:
    """Split at the commas outside brackets; None if the brackets don't match or are too deep."""
    items, start, depth = [], 0, 0
    for at, symbol in enumerate(text):
        if symbol in "([{":
            depth += 1
        elif symbol in ")]}":
            depth -= 1
        elif symbol == "," and depth == 0:
            items.append(text[start:at].strip())
            start = at + 1
        if not 0 <= depth <= _MOST_NESTING:
            return None
    if depth:
        return None
    items.append(text[start:].strip())
    return items

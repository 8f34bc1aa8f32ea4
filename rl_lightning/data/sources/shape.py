"""What the rows of a data set hold, and what can be learnt from that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: What a row can bring: something to answer, a gold answer, a written response, a better and a worse one, what a response is
#: worth, or a text to learn whole.
Offer = Literal["prompts", "answers", "responses", "pairs", "labels", "texts"]


@dataclass(frozen=True)
class Shape:
    """What was understood of a table of rows.

    Args:
        name: such as ``preference pairs``.
        offers: what an algorithm can take from it.
        notes: what else is said of it, such as ``conversational``.
        columns: of the table, in its order, for messages.

    Example:
        >>> print(Shape("preference pairs", frozenset({"pairs"}), ("conversational", "implicit prompt")))
        preference pairs, conversational, implicit prompt
    """

    name: str
    offers: frozenset[Offer]
    notes: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()

    def __str__(self) -> str:
        return ", ".join((self.name, *self.notes))

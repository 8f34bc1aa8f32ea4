"""A share of the training rows that is held out."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from rl_lightning.data.sources.base import Example
from rl_lightning.errors import UserError


@dataclass(frozen=True)
class Share:
    """How much is held out. Which rows follows from their prompts alone: the same in every run, on every rank, in any order of rows.

    Args:
        size: a share between 0 and 1, or a number of rows, as an integer.

    Raises:
        UserError: for anything else.
    """

    size: float

    def __post_init__(self) -> None:
        """Refuse what is no share and no number of rows."""
        if isinstance(self.size, bool) or not self.size > 0 or (isinstance(self.size, float) and self.size >= 1):
            raise UserError(
                f"val: {self.size} is neither a share between 0 and 1, such as 0.02, nor a number of rows, such as 500"
            )

    @staticmethod
    def of(value: object) -> Share | None:
        """Return the share that a value of the option `val` means; None if it names data."""
        if isinstance(value, str):
            try:
                value = int(value) if value.strip().isdecimal() else float(value)
            except ValueError:
                return None
        return Share(value) if isinstance(value, int | float) else None

    def split(self, examples: list[Example]) -> tuple[list[Example], list[Example]]:
        """Return what is kept and what is held out, each in the order of the examples; one prompt is on one side only.

        Raises:
            UserError: if nothing would be kept.
        """
        wanted = self.size if isinstance(self.size, int) else max(1, round(self.size * len(examples)))
        places: dict[bytes, list[int]] = {}
        for place, example in enumerate(examples):
            places.setdefault(_key(example), []).append(place)
        held_out: set[int] = set()
        for key in sorted(places):
            if len(held_out) >= wanted:
                break
            held_out.update(places[key])
        if len(held_out) == len(examples):
            raise UserError(
                f"val: {self.size:g} of {len(examples)} row{'s' * (len(examples) > 1)} with {len(places)} different "
                f"prompt{'s' * (len(places) > 1)} leaves none to train on"
            )
        kept = [example for place, example in enumerate(examples) if place not in held_out]
        return kept, [examples[place] for place in sorted(held_out)]


def _key(example: Example) -> bytes:
    """Return a hash of what is asked; of the text where nothing is."""
    said = example.response if example.prompt is None else example.prompt
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).digest()

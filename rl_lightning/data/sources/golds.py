"""Gold answers that stand in several columns."""

from __future__ import annotations

from rl_lightning.data.sources import values
from rl_lightning.data.sources.head import Head, Row, plain
from rl_lightning.errors import UserError
from rl_lightning.rewards.grading.equivalence import may_be_equal


def refuse_contradiction(head: Head, first: str, second: str) -> None:
    """Refuse two columns that hold gold answers, if they are not equal in some row.

    Args:
        head: the first rows.
        first, second: the columns. ``reward_model`` holds dicts, or their JSON.

    Raises:
        UserError: with both answers.
    """
    for row in head.rows:
        one, other = _gold(row, first), _gold(row, second)
        if not may_be_equal(one, other):
            raise UserError(
                f"{head.name}: two gold answers contradict each other: {first} says {one!r:.60} and {second} says {other!r:.60}; "
                f"name the one that responses are compared with, answer_column: {first} or {second}"
            )


def _gold(row: Row, column: str) -> object:
    """Return what stands there; None if it cannot be read, which is reported when it is used."""
    try:
        return values.ground_truth(row.get(column)) if plain(column) == "reward_model" else row.get(column)
    except values.BadValue:
        return None

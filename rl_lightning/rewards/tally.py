"""Counts of rare events inside reward functions, such as a symbolic comparison that timed out."""

from __future__ import annotations

from collections import Counter

_counts: Counter[str] = Counter()


def count(event: str) -> None:
    """Count one event; reward functions of your own may call this.

    A worker sends its counts to the trainer with each result. They are added to :attr:`rl_lightning.rewards.Scores.failures`, and
    logged as ``reward_failures/EVENT``, or as ``EVENT`` if that has a slash in it.

    Args:
        event: its name.
    """
    _counts[event] += 1


def drain() -> dict[str, int]:
    """Return the counts of this process since the last call, by event, and reset them."""
    drained = dict(_counts)
    _counts.clear()
    return drained

"""Counts of rare events in the process that runs a reward function, such as a symbolic comparison that timed out."""

from __future__ import annotations

from collections import Counter

_counts: Counter[str] = Counter()


def count(event: str) -> None:
    """Count one event in this process.

    A reward worker sends its counts home with each result, so what a reward function counts shows up in
    :attr:`rl_lightning.rewards.Scores.failures`.
    """
    _counts[event] += 1


def drain() -> dict[str, int]:
    """Return the counts since the last call, and start again from zero."""
    drained = dict(_counts)
    _counts.clear()
    return drained

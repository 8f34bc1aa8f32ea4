"""What reward functions say beside their value: counts of rare events, notes for tables of samples, numbers for the loggers.

A function of yours may call `count`, `note` and `measure`. In a worker they belong to the call that is made at the moment, also
where several ``async def`` calls are in flight.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field

_LONGEST_NOTE, _MOST_NOTES = 200, 16  # characters; notes of one call


@dataclass
class Said:
    """What one call said.

    Args:
        counts: events by name.
        notes: texts and numbers by name; a list of them, one a sample, where the call was of several samples.
        measures: name → (sum, number of values).
    """

    counts: dict[str, int] = field(default_factory=Counter)
    notes: dict[str, object] = field(default_factory=dict)
    measures: dict[str, tuple[float, int]] = field(default_factory=dict)


#: What the present call says. The default is of everything outside of such calls, and of threads that a reward starts.
_outside = Said()
_present: ContextVar[Said] = ContextVar("present", default=_outside)


def count(event: str) -> None:
    """Count one event.

    Counts are added to :attr:`rl_lightning.rewards.Scores.failures`, and logged as ``reward_failures/EVENT``, or as ``EVENT`` if
    that has a slash in it.

    Args:
        event: its name.
    """
    _present.get().counts[event] += 1


def note(**values: object) -> None:
    """Note something about the sample, such as ``read="42"``, for the tables of samples.

    Args:
        **values: name → text (its first 200 characters are kept), number, True, False or None.
    """
    notes = _present.get().notes
    for name, value in values.items():
        if name in notes or len(notes) < _MOST_NOTES:
            notes[name] = _plain(value)


def note_each(name: str, values: Iterable[object]) -> None:
    """Note one value for each sample, in a function that takes several at once.

    Args:
        name: of the notes.
        values: one a sample, as for `note`.
    """
    notes = _present.get().notes
    if name in notes or len(notes) < _MOST_NOTES:
        notes[name] = [_plain(value) for value in values]


def measure(name: str, value: float) -> None:
    """Measure something; the mean is logged as ``reward/REWARD/NAME``.

    Args:
        name: of the number.
        value: the number.
    """
    measures = _present.get().measures
    total, number = measures.get(name, (0.0, 0))
    measures[name] = total + float(value), number + 1


def begin() -> None:
    """Let what this task says be its own, apart from what other tasks of an event loop say."""
    _present.set(Said())


def drain() -> Said:
    """Return what the present call has said, and what was said outside of any; forget both."""
    said, others = _present.get(), Said(dict(_outside.counts), dict(_outside.notes), dict(_outside.measures))
    if said is not _outside:
        others = Said(
            dict(Counter(said.counts) + Counter(others.counts)),
            others.notes | said.notes,
            others.measures | said.measures,
        )
    for one in (said, _outside):
        one.counts.clear()
        one.notes.clear()
        one.measures.clear()
    return others


def _plain(value: object) -> object:
    if value is None or type(value) in (bool, int):
        return value
    return float(value) if isinstance(value, float) else str(value)[:_LONGEST_NOTE]

"""From what reward functions returned to scores."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import SupportsFloat

from rl_lightning.rewards.bound import BoundReward
from rl_lightning.rewards.spec import Outcome, Scores
from rl_lightning.rewards.tally import Said

#: Ways in which a sample comes to have no reward.
FAILURES = ("raised", "timeout", "died", "nan", "none")


@dataclass(frozen=True)
class Judged:
    """One reward of one sample.

    Args:
        value: NaN if it failed or does not apply.
        failure: one of `FAILURES`; None if it has a value or does not apply.
        applies: it returned something else than None.
        error: the traceback or a line about the failure.
        parts: the named parts that it is the sum of, if it has some.
        notes: parts, and what the function noted.
    """

    value: float
    failure: str | None = None
    applies: bool = True
    error: str | None = None
    parts: dict[str, float] = field(default_factory=dict)
    notes: dict[str, object] = field(default_factory=dict)


def judged(outcome: Outcome, reward: BoundReward) -> Judged:
    """Return what a call says of its sample."""
    notes = dict(outcome.said.notes)
    if outcome.kind != "ok":
        return Judged(math.nan, outcome.kind, error=outcome.error, notes=notes)
    value = outcome.value
    if isinstance(value, Mapping) and reward.style.whole:
        notes |= {name: part for name, part in value.items() if name != "score" and not isinstance(part, (list, dict))}
        value = value.get("score")
    parts: dict[str, float] = {}
    if isinstance(value, Mapping):
        given = {str(name): part for name, part in value.items() if part is not None}
        parts = {name: _number(part) for name, part in given.items()}
        wrong = [name for name, part in parts.items() if not math.isfinite(part)]
        if wrong:
            what = f"It returned {_shown(given[wrong[0]])} as its part {wrong[0]!r}, not a finite number"
            return Judged(math.nan, "nan", error=what, notes=notes)
        value = math.fsum(parts.values()) if parts else None
    if value is None:
        return Judged(math.nan, applies=False, notes=notes)
    number = _number(value)
    if math.isfinite(number):
        return Judged(number, parts=parts, notes=parts | notes)
    return Judged(math.nan, "nan", error=f"It returned {_shown(value)}, not a finite number", notes=notes)


def _number(value: object) -> float:
    """Return a value as a float; NaN for what is none."""
    try:
        return float(value) if isinstance(value, SupportsFloat) else math.nan
    except Exception:  # a tensor of several elements, say
        return math.nan


def _shown(value: object) -> str:
    # Python refuses to print an integer that is too large for a float.
    return "an integer too large for a float" if isinstance(value, int) else repr(str(value)[:80])


def scored(
    rewards: Sequence[BoundReward], found: Mapping[str, Sequence[Judged]], said: Mapping[str, Sequence[Said]]
) -> Scores:
    """Return the scores of samples.

    Args:
        rewards: all of them, in the order in which they are listed.
        found: name of a reward → one a sample.
        said: name of a reward → what it said of each sample.
    """
    rows = list(zip(*(found[reward.name] for reward in rewards), strict=True))
    weighted = [place for place, reward in enumerate(rewards) if reward.weight]
    total, first = [], []
    failures: Counter[str] = Counter()
    for column in said.values():
        for one in column:
            failures.update(one.counts)
    for row in rows:
        applying = [place for place in weighted if row[place].applies]
        # Metrics alone, of weight 0, make a reward of 0 that nobody learns from.
        worthless = bool(weighted) and not applying
        if worthless:
            failures["none"] += 1
        total.append(
            math.nan if worthless else math.fsum(rewards[place].weight * row[place].value for place in applying)
        )
        first.append(next((one.value for one in row if one.applies), math.nan))
    failures.update(one.failure for row in rows for one in row if one.failure is not None)
    inapplicable = {name: sum(not one.applies for one in column) for name, column in found.items()}
    return Scores(
        total,
        {reward.name: [one.value for one in found[reward.name]] for reward in rewards},
        dict(failures),
        first,
        {name: number for name, number in inapplicable.items() if number},
        [{reward.name: one.notes for reward, one in zip(rewards, row, strict=True) if one.notes} for row in rows],
        _measures(found, said),
    )


def _measures(
    found: Mapping[str, Sequence[Judged]], said: Mapping[str, Sequence[Said]]
) -> dict[str, tuple[float, int]]:
    """Return NAME/PART → (sum, number) of the parts that rewards are made of, and of what they measured."""
    single = [
        (f"{name}/{part}", value, 1)
        for name, column in found.items()
        for one in column
        for part, value in one.parts.items()
    ]
    told = [
        (f"{name}/{what}", *sums)
        for name, column in said.items()
        for one in column
        for what, sums in one.measures.items()
    ]
    measures: dict[str, tuple[float, int]] = {}
    for name, total, number in [*single, *told]:
        before = measures.get(name, (0.0, 0))
        measures[name] = before[0] + total, before[1] + number
    return measures

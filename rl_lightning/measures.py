"""Metrics that know how to be combined over chunks and ranks, and those of every rollout.

A rollout is sampled in chunks, one after the other, on several ranks at the same time. Each part has metrics, and the type of a
metric says how the parts' numbers become one:

    type                 chunks, one after the other    ranks, side by side
    Sum                  sum                            sum
    Seconds              sum                            mean
    Mean(total, count)   Σ total / Σ count              Σ total / Σ count
    float, Tensor        mean over the parts            mean over the parts

A plain number is right for what is the same in all parts. A mean over rows must be a `Mean`, since parts differ in size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import SupportsFloat

import torch
from torch import Tensor

from rl_lightning.errors import UserError
from rl_lightning.functional import masked_mean, masked_variance
from rl_lightning.functional.masking import Total, alone
from rl_lightning.types import Rollout

#: A metric's type and its numbers, as JSON can hold them.
Packed = list[str | float]


class Sum(float):
    """A count; the counts of parts are added."""


class Seconds(float):
    """A time; added over chunks, which come one after the other, and averaged over ranks, which work side by side."""


class Mean(float):
    """A mean over items; the mean over parts weighs each part by its number of items.

    Args:
        total: sum over the items.
        count: number of items; the mean over none is 0.

    Example:
        >>> merged([{"a": Mean(3.0, 4)}, {"a": Mean(5.0, 1)}])
        {'a': 1.6}
    """

    total: float
    count: float

    def __new__(cls, total: float, count: float) -> Mean:
        """Make the number total / count, and keep both."""
        self = super().__new__(cls, total / count if count else 0.0)
        self.total, self.count = float(total), float(count)
        return self

    def __getnewargs__(self) -> tuple[float, float]:  # type: ignore[override]
        """Return the arguments of `__new__`, from which pickle makes a copy."""
        return self.total, self.count

    @classmethod
    def of(cls, values: Tensor, mask: Tensor) -> Mean:
        """Return the mean of `values` where `mask`, bool of the same shape, is True."""
        return cls(float(values[mask].double().sum()), float(mask.sum()))


def packed(metrics: Mapping[str, float]) -> dict[str, Packed]:
    """Return metrics as lists of a type's name and plain numbers, which JSON can hold; `unpacked` reads them."""
    return {
        name: ["Mean", value.total, value.count]
        if isinstance(value, Mean)
        else [type(value).__name__ if isinstance(value, (Sum, Seconds)) else "float", float(value)]
        for name, value in metrics.items()
    }


def unpacked(metrics: Mapping[str, Packed]) -> dict[str, float]:
    """Return the metrics that `packed` was given, with their types."""
    kinds: dict[str | float, Callable[..., float]] = {"Mean": Mean, "Sum": Sum, "Seconds": Seconds, "float": float}
    return {name: kinds[kind](*numbers) for name, (kind, *numbers) in metrics.items()}


def merged(parts: Sequence[Mapping[str, SupportsFloat]], side_by_side: bool = False) -> dict[str, float]:
    """Combine the metrics of parts into those of the whole; see the module's table.

    Args:
        parts: name → number for each part; a part may lack some.
        side_by_side: True for ranks, False for chunks.

    Raises:
        UserError: naming a metric that is not one number.
    """
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: _merged(name, [part[name] for part in parts if name in part], side_by_side) for name in names}


def _merged(name: str, values: Sequence[SupportsFloat], side_by_side: bool) -> float:
    means = [value for value in values if isinstance(value, Mean)]
    if len(means) == len(values):
        return Mean(sum(mean.total for mean in means), sum(mean.count for mean in means))
    numbers = [_number(name, value) for value in values]
    mean = numbers[0] if numbers.count(numbers[0]) == len(numbers) else sum(numbers) / len(numbers)
    for kind, whole in ((Sum, sum(numbers)), (Seconds, mean if side_by_side else sum(numbers))):
        if all(isinstance(value, kind) for value in values):
            return kind(whole)
    return mean


def _number(name: str, value: SupportsFloat) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        shape = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else ""
        raise UserError(f"the metric {name!r} must be one number, not a {type(value).__name__}{shape}") from error


def rollout_metrics(rollout: Rollout, total: Total = alone) -> dict[str, float]:
    """Return what the loggers see of responses: reward, correctness, length, truncation.

    Args:
        rollout: this rank's rows.
        total: adds sums up over ranks, for the metrics of all rows.
    """
    scored, everything = rollout.scored, torch.ones_like(rollout.scored)
    votes, correct = rollout.votes()
    count = total(scored.sum().to(rollout.rewards))
    values = {
        "rollout/reward_mean": masked_mean(rollout.rewards, scored, total),
        "rollout/reward_std": (
            masked_variance(rollout.rewards, scored, total) * count / (count - 1).clamp(min=1)
        ).sqrt(),
        "rollout/correct_fraction": masked_mean(rollout.correct.float(), scored, total),
        "rollout/length_mean": masked_mean(rollout.policy_lengths.float(), everything, total),
        "rollout/truncated_fraction": masked_mean(rollout.truncated.float(), everything, total),
        "rollout/all_right_fraction": masked_mean((correct == votes).float(), votes > 0, total),
        "rollout/all_wrong_fraction": masked_mean((correct == 0).float(), votes > 0, total),
    }
    if not rollout.reward_components:  # nothing judges them
        values = {name: values[name] for name in ("rollout/length_mean", "rollout/truncated_fraction")}
    if rollout.turns is not None:
        heard = (rollout.lengths - rollout.policy_lengths).float()
        values["rollout/turns_mean"] = masked_mean(rollout.turns.amax(1).float(), everything, total)
        values["rollout/reply_tokens_mean"] = masked_mean(heard, everything, total)
    for name, component in rollout.reward_components.items():
        values[f"reward/{name}"] = masked_mean(component, ~component.isnan(), total)
    return {name: float(value) for name, value in values.items()}

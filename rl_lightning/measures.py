"""Numbers for the loggers that say how the numbers of parts make that of the whole.

Parts are the chunks that a rollout is sampled in, one after the other, and the ranks, which work side by side. A plain number,
or a tensor of one element, is the mean over the parts that have it: right for what every part knows of the whole, and for
nothing else where parts differ in size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from rl_lightning.errors import UserError


class Sum(float):
    """A count of something: parts add up."""


class Seconds(float):
    """A time: parts add up where one comes after the other; side by side they take their mean."""


class Mean(float):
    """A mean over some things: parts are pooled, each weighed by how many things it has.

    Args:
        total: sum over the things.
        count: how many there are; the mean over none is 0.

    Example:
        >>> merged([{"a": Mean(3.0, 4)}, {"a": Mean(5.0, 1)}])
        {'a': 1.6}
    """

    total: float
    count: float

    def __new__(cls, total: float, count: float) -> Mean:
        """Divide."""
        self = super().__new__(cls, total / count if count else 0.0)
        self.total, self.count = float(total), float(count)
        return self

    def __getnewargs__(self) -> tuple[float, float]:  # type: ignore[override]
        """Return what a copy in another process is made of."""
        return self.total, self.count

    @classmethod
    def of(cls, values: Tensor, mask: Tensor) -> Mean:
        """Return the mean of values where a mask of the same shape is True."""
        return cls(float(values[mask].double().sum()), float(mask.sum()))


def packed(metrics: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return metrics as strings and plain numbers, as a file may hold them."""
    return {
        name: ["Mean", value.total, value.count]
        if isinstance(value, Mean)
        else [type(value).__name__ if isinstance(value, (Sum, Seconds)) else "float", float(value)]
        for name, value in metrics.items()
    }


def unpacked(metrics: Mapping[str, Sequence[Any]]) -> dict[str, float]:
    """Undo `packed`."""
    kinds: dict[str, Any] = {"Mean": Mean, "Sum": Sum, "Seconds": Seconds, "float": float}
    return {name: kinds[kind](*numbers) for name, (kind, *numbers) in metrics.items()}


def merged(parts: Sequence[Mapping[str, Any]], side_by_side: bool = False) -> dict[str, float]:
    """Return the metrics of a whole, given those of its parts.

    Args:
        parts: name → number, each; a part may lack some.
        side_by_side: they are of several ranks; otherwise one part comes after the other.

    Raises:
        UserError: naming a metric that is not one number.
    """
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: _merged(name, [part[name] for part in parts if name in part], side_by_side) for name in names}


def _merged(name: str, values: Sequence[Any], side_by_side: bool) -> float:
    if all(isinstance(value, Mean) for value in values):
        return Mean(sum(value.total for value in values), sum(value.count for value in values))
    numbers = [_number(name, value) for value in values]
    mean = numbers[0] if numbers.count(numbers[0]) == len(numbers) else sum(numbers) / len(numbers)
    for kind, whole in ((Sum, sum(numbers)), (Seconds, mean if side_by_side else sum(numbers))):
        if all(isinstance(value, kind) for value in values):
            return kind(whole)
    return mean


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        shape = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else ""
        raise UserError(f"the metric {name!r} must be one number, not a {type(value).__name__}{shape}") from error

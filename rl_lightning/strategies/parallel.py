"""Data-parallel ranks: each holds a share of every optimizer batch."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from typing import Any

import torch.distributed as dist
from lightning.pytorch import Trainer
from torch import Tensor

from rl_lightning.measures import merged


def data_parallel_size(trainer: Trainer) -> int:
    """Return the number of ranks that an optimizer batch is split over."""
    return trainer.world_size


def data_parallel_rank(trainer: Trainer) -> int:
    """Return which share of every optimizer batch this process works on, from 0."""
    return trainer.global_rank * data_parallel_size(trainer) // trainer.world_size


def sum_over_ranks(trainer: Trainer, value: Tensor) -> Tensor:
    """Return the sum of a tensor over ranks; every rank must call it."""
    if data_parallel_size(trainer) == 1:
        return value
    total: Any = trainer.strategy.reduce(value.to(trainer.strategy.root_device), reduce_op="sum")
    return total.to(value.device)


def from_every_rank(value: Any) -> list[Any]:
    """Return a picklable value of every rank, by rank; every rank must call it."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def metrics_of_all_ranks(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return metrics of all ranks as plain numbers, given each rank's own; every rank must call it. See `merged`."""
    whole = merged(from_every_rank(merged([metrics])), side_by_side=True)
    return {name: float(value) for name, value in whole.items()}


#: How often a rank looks for the sign of another, in seconds.
_LOOK_EVERY_S = 0.5


class StopSign:
    """A sign that any rank can put up for all others to see, whatever they are doing; every rank must make as many."""

    _numbers = itertools.count()

    def __init__(self) -> None:
        self._store: Any = dist.distributed_c10d._get_default_store()
        self._key = f"rl_lightning/stop/{next(self._numbers)}"
        self._looked = time.monotonic()

    def is_up(self, put_up: bool) -> bool:
        """Return whether the sign is up, after putting it up if that is wanted. Asked often, it looks now and then only."""
        if put_up:
            self._store.set(self._key, "")
            return True
        if time.monotonic() - self._looked < _LOOK_EVERY_S:
            return False
        self._looked = time.monotonic()
        return bool(self._store.check([self._key]))

"""Data-parallel ranks, each with a share of every optimizer batch, and what they tell each other."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils._pytree import tree_leaves

from rl_lightning.errors import UserError
from rl_lightning.measures import merged

ValueT = TypeVar("ValueT")


def data_parallel_size(trainer: Trainer) -> int:
    """Return the number of ranks that every optimizer batch is split over."""
    return trainer.world_size


def data_parallel_rank(trainer: Trainer) -> int:
    """Return which share of every optimizer batch this process works on, counted from 0."""
    return trainer.global_rank * data_parallel_size(trainer) // trainer.world_size


def own_rank() -> int:
    """Return the rank of this process; 0 if it is the only one. For code that has no Trainer."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def number_of_ranks() -> int:
    """Return how many ranks there are; 1 without distributed training. For code that has no Trainer."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_over_ranks(trainer: Trainer, value: Tensor) -> Tensor:
    """Return the elementwise sum of a tensor over ranks, on the tensor's device. All ranks call this together."""
    if data_parallel_size(trainer) == 1:
        return value
    total = trainer.strategy.reduce(value.to(trainer.strategy.root_device), reduce_op="sum")
    return torch.as_tensor(total, device=value.device)


def _plain(value: object) -> object:
    """Return a value with its dataclasses, also those in lists, as dictionaries of their fields."""
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    return _plain(vars(value)) if is_dataclass(value) and not isinstance(value, type) else value


def from_every_rank(value: ValueT) -> list[ValueT]:
    """Return the values that the ranks give, by rank. All ranks call this together.

    Args:
        value: this rank's; picklable. Its tensors are on the host: pickle would move one of a GPU to the GPU of the same number on the
            other ranks.

    Raises:
        TypeError: for a tensor on another device.
    """
    strange = {leaf.device.type for leaf in tree_leaves(_plain(value)) if isinstance(leaf, Tensor)} - {"cpu"}
    if strange:
        raise TypeError(
            f"only tensors of the host are sent as objects, not of {', '.join(sorted(strange))}: move them first"
        )
    if number_of_ranks() == 1:
        return [value]
    values = [value] * number_of_ranks()
    dist.all_gather_object(values, value)
    return values


def agreed(action: Callable[[], ValueT]) -> ValueT:
    """Call `action` on every rank, and return what it returned on this one. All ranks call this together.

    Raises:
        UserError: on every rank, if it was raised on one. So no rank waits for another that has given up.
    """
    value, failure = None, None
    try:
        value = action()
    except UserError as error:
        failure = str(error)
    for reason in from_every_rank(failure):
        if reason is not None:
            raise UserError(reason)
    return cast(ValueT, value)


def together(action: Callable[[], ValueT]) -> list[ValueT]:
    """Call `action` on every rank, and return what it returned, by rank; see `agreed`."""
    return from_every_rank(agreed(action))


def metrics_of_all_ranks(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return each rank's metrics combined into one number a name, as `rl_lightning.measures.merged` says. All ranks call this
    together."""
    whole = merged(from_every_rank(merged([metrics])), side_by_side=True)
    return {name: float(value) for name, value in whole.items()}


#: Seconds between two looks for another rank's sign.
_LOOK_EVERY_S = 0.5


class StopSign:
    """A flag in the store of the process group: one rank sets it, and the others see it without a collective call.

    Every rank must make the same number of signs, for they are numbered in order.
    """

    _numbers = itertools.count()

    def __init__(self) -> None:
        self._store = dist.distributed_c10d._get_default_store()
        self._key = f"rl_lightning/stop/{next(self._numbers)}"
        self._looked = time.monotonic()

    def is_up(self, put_up: bool) -> bool:
        """Return whether a rank has put the sign up. The store is asked at most every 0.5 s.

        Args:
            put_up: put it up.
        """
        if put_up:
            self._store.set(self._key, "")
            return True
        if time.monotonic() - self._looked < _LOOK_EVERY_S:
            return False
        self._looked = time.monotonic()
        return bool(self._store.check([self._key]))

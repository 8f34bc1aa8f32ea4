"""Tensors between the host and a device: one copy for all of them, and no wait for what the host knows already.

A host that reads from a GPU waits until the GPU has done all that it was asked for, and a GPU whose host waits soon has nothing
to do. So what branches depend on (which tokens are real, how long rows are) is computed on the host before a batch travels, and
the host's copy of every tensor that travelled is remembered for whoever needs its numbers later: see `on_host`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import TypeVar, cast

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

ValueT = TypeVar("ValueT")
TableT = TypeVar("TableT")

#: Every tensor begins at a multiple of so many bytes, as views of any dtype need.
_ALIGNED = 16

#: Tensor of a device → the host's copy of it, and where a mask is True.
_COPIES: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
_PLACES: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def carried(tensors: Sequence[Tensor], device: torch.device | str) -> list[Tensor]:
    """Return tensors on a device, those of another one moved there together, in a single copy.

    A copy to a GPU is made from pinned memory, and the host does not wait for it; a copy from there is waited for, once.

    Args:
        tensors: of any shape and dtype. What travels to a device must not be changed in place there: see `on_host`.
        device: where to.
    """
    device = torch.device(device)
    moving = [one for one in tensors if one.device.type != device.type]
    if not moving:
        return list(tensors)
    sizes = [-(-one.nbytes // _ALIGNED) * _ALIGNED for one in moving]
    packed = torch.cat([_bytes(one, size) for one, size in zip(moving, sizes, strict=True)])
    # Only CUDA copies from pinned memory beside the host.
    there = packed.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else packed.to(device)
    starts = [0, *accumulate(sizes)]
    found = iter([_read(there[start:], one) for start, one in zip(starts, moving, strict=False)])
    if device.type == "cpu":
        found = (one.clone() for one in found)  # each in memory of its own, as files keep them
    arrived = [one if one.device.type == device.type else next(found) for one in tensors]
    if device.type != "cpu":
        _COPIES.update({one: copy for one, copy in zip(arrived, tensors, strict=True) if one is not copy})
    return arrived


def on_host(tensor: Tensor) -> Tensor:
    """Return a tensor as it is on the host: itself, what it was before it travelled, or, for one made on a device, a copy that
    the host waits for."""
    if tensor.device.type == "cpu":
        return tensor
    copy: Tensor | None = _COPIES.get(tensor)
    return tensor.cpu() if copy is None else copy


def with_tensors(table: TableT, change: Callable[[Tensor], Tensor]) -> TableT:
    """Return a dataclass with every tensor changed, those in dictionaries too, but for the `metrics`."""
    changed: dict[str, object] = {}
    for name, value in vars(table).items():
        if isinstance(value, Tensor):
            changed[name] = change(value)
        elif isinstance(value, dict) and name != "metrics":
            changed[name] = {key: change(one) for key, one in value.items()}
    return replace(table, **changed)  # type: ignore[type-var]


def table_carried(table: TableT, device: torch.device | str) -> TableT:
    """Return a dataclass with the tensors that `with_tensors` changes on a device: see `carried`."""
    found: list[Tensor] = []

    def keep(value: Tensor) -> Tensor:
        found.append(value)
        return value

    with_tensors(table, keep)
    arrived = iter(carried(found, device))
    return with_tensors(table, lambda value: next(arrived))


def brought_home(values: Mapping[str, ValueT]) -> dict[str, ValueT]:
    """Return values by name, the tensors among them on the host, all from a device in one copy."""
    found = dict(values)
    names = [name for name, value in found.items() if isinstance(value, Tensor)]
    home = carried([cast(Tensor, found[name]) for name in names], "cpu")
    return found | dict(zip(names, cast("list[ValueT]", home), strict=True))


def host_number(value: float) -> Tensor:
    """Return a number as a tensor of the host, for Lightning's `log`: it would make one on the device, and loggers would wait for it."""
    return torch.tensor(value, dtype=torch.promote_types(torch.get_default_dtype(), torch.float32))


def chosen(values: Tensor, mask: Tensor) -> Tensor:
    """Return the values where a mask is True, (K,), as `values[mask]` does.

    Args:
        values, mask: of the same shape, on the same device.
    """
    if mask.device.type == "cpu":
        return values[mask]
    places: Tensor | None = _PLACES.get(mask)
    if places is None:
        (places,) = carried([on_host(mask).flatten().nonzero()[:, 0]], mask.device)
        _PLACES[mask] = places
    return values.flatten().index_select(0, places)


def _bytes(tensor: Tensor, size: int) -> Tensor:
    """Return a tensor's bytes, (size,) uint8, filled up with zeros."""
    flat = tensor.detach().reshape(-1)
    if flat.stride(0) != 1:  # a single number of a column, say
        flat = flat.clone(memory_format=torch.contiguous_format)
    flat = flat.view(torch.uint8)
    return torch.nn.functional.pad(flat, (0, size - len(flat)))


def _read(packed: Tensor, like: Tensor) -> Tensor:
    """Return the tensor whose bytes stand first, with the shape and dtype of `like`."""
    return packed[: like.nbytes].view(like.dtype).view(like.shape)

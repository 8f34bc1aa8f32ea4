"""Weights that the first rank reads from files and hands out, unit by unit, so that no other rank ever holds a whole model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from rl_lightning.strategies.parallel import agreed, from_every_rank, number_of_ranks, own_rank

ModelT = TypeVar("ModelT", bound=nn.Module)


def is_given_weights(trainer: Trainer | None) -> bool:
    """Return whether this rank is given the weights of models by the first one: FSDP2 keeps a share of them here, and there are
    other ranks. Such a rank needs only the outline of a model, on the device `meta`."""
    sharded = trainer is not None and isinstance(trainer.strategy, ModelParallelStrategy)
    return sharded and number_of_ranks() > 1 and own_rank() > 0


def whole_here(load: Callable[..., ModelT], trainer: Trainer) -> ModelT:
    """Return a model whole on this rank's device, in the trainer's precision. Where weights are sharded, the first rank alone reads them,
    and no other ever has them on its host. All ranks call this together.

    Args:
        load: takes `outline`; see `rl_lightning.models.PolicyFiles.load`.
        trainer: says how weights are divided, and in what precision they are.
    """
    outline = is_given_weights(trainer)
    model = trainer.precision_plugin.convert_module(agreed(lambda: load(outline=outline)))
    if isinstance(trainer.strategy, ModelParallelStrategy):
        hand_out(model, trainer.strategy.root_device)
    return cast(ModelT, model.to(trainer.strategy.root_device))


def hand_out(unit: nn.Module, device: torch.device) -> None:
    """Make what is not sharded yet of a part of a model equal on all ranks: the first sends its own. All ranks call this together.

    Args:
        unit: whose parameters and buffers are those of the first rank, or an outline of them on `meta`.
        device: where they are then, on every rank.

    Raises:
        RuntimeError: if an outline does not fit what the first rank has.
    """
    if number_of_ranks() == 1:
        return
    made: dict[Tensor, Tensor] = {}  # weights that are used in two places stay one
    places = [
        (table, name, one)
        for module in unit.modules()
        for table in cast("tuple[dict[str, Tensor | None], ...]", (module._parameters, module._buffers))
        for name, one in table.items()
        if one is not None and not isinstance(one, DTensor)
    ]
    sizes = [(name, tuple(one.shape), one.dtype) for _, name, one in places]
    first = from_every_rank(sizes)[0]
    if [size[:2] for size in sizes] != [size[:2] for size in first]:
        raise RuntimeError(f"{type(unit).__name__} has other weights on the first rank: {first} there, {sizes} here")
    for (table, name, one), (_, _, dtype) in zip(places, first, strict=True):
        if one not in made:
            made[one] = _here(one, device, dtype)
            dist.broadcast(made[one].detach(), src=0)
        table[name] = made[one]


def _here(one: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return a tensor or parameter on a device; empty there if it is an outline."""
    value = torch.empty(one.shape, dtype=dtype, device=device) if one.is_meta else one.detach().to(device, dtype)
    value = value.contiguous()
    return nn.Parameter(value, one.requires_grad) if isinstance(one, nn.Parameter) else value

"""Models whose parameters are spread over ranks: what to shard, and how to have them whole for a while.

Algorithms call `place` on each model they load, `gathered` around what is no training step, and `full_state_dict` to export.
Under strategies that do not shard all three leave everything as it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.distributed.fsdp import fully_shard as shard_module
from torch.distributed.tensor import DTensor

from rl_lightning.errors import UserError
from rl_lightning.models.families import decoder_layers

ModelT = TypeVar("ModelT", bound=nn.Module)

#: What `FSDPStrategy` puts between the names of a layer and of its parameters.
_WRAPPED = "_fsdp_wrapped_module"


def place(model: ModelT, trainer: Trainer | None) -> ModelT:
    """Spread a loaded model over the ranks if the trainer's strategy wants that; the same object, in place.

    Each decoder layer becomes a unit that is gathered, used and let go; the rest of the model is one more.

    Args:
        model: all of it on every rank.
        trainer: None for a model that is used without one.

    Raises:
        UserError: for tensor parallelism, which the algorithms do not know.
    """
    strategy = None if trainer is None else trainer.strategy
    if isinstance(strategy, FSDPStrategy):
        # It wraps the whole module later, by one policy for all of its models.
        classes = {type(layer) for layer in decoder_layers(model)}
        policy = strategy.kwargs.setdefault("auto_wrap_policy", _WrapLayers(classes))
        if isinstance(policy, _WrapLayers):
            policy.classes |= classes
    elif isinstance(strategy, ModelParallelStrategy):
        if strategy.device_mesh["tensor_parallel"].size() > 1:
            raise UserError(
                "tensor parallelism is not supported: set data_parallel_size to the number of devices and "
                "tensor_parallel_size to 1, or use rl_lightning.strategies.FSDP2Strategy, which does"
            )
        options = getattr(strategy, "shard_options", {})
        mesh = strategy.device_mesh["data_parallel"]
        for layer in decoder_layers(model):
            shard_module(layer, mesh=mesh, **options)
        # Everything that a forward pass begins and ends with is needed again at once in the backward pass.
        shard_module(model, mesh=mesh, **{**options, "reshard_after_forward": False})
    return model


class _WrapLayers:
    """A wrap policy of torch that knows more classes with every model that is loaded."""

    def __init__(self, classes: set[type[nn.Module]]) -> None:
        self.classes = classes

    def __call__(self, module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
        """Tell whether to look inside a module, or, if not `recurse`, whether to wrap it."""
        return recurse or isinstance(module, tuple(self.classes))


@contextlib.contextmanager
def gathered(trainer: Trainer, *models: nn.Module) -> Iterator[None]:
    """Have models whole on every rank inside this; every rank must enter it, but may do there what it likes.

    Sampling one token at a time would else gather every layer for every token, and ranks whose longest responses
    differ would wait for each other forever. Nothing may be trained inside. It may be entered twice.
    """
    strategy = trainer.strategy
    with contextlib.ExitStack() as stack:
        if isinstance(strategy, FSDPStrategy):
            whole = strategy.model
            if isinstance(whole, FullyShardedDataParallel) and not getattr(whole, "_gathered", False):
                stack.enter_context(_flag(whole))
                stack.enter_context(FullyShardedDataParallel.summon_full_params(whole, writeback=False))
                stack.enter_context(_unwrapped(whole))
        else:
            for model in models:
                if isinstance(model, FSDPModule) and not getattr(model, "_gathered", False):
                    stack.enter_context(_flag(model))
                    stack.enter_context(_unsharded(model))
        yield


@contextlib.contextmanager
def _flag(module: Any) -> Iterator[None]:
    module._gathered = True
    try:
        yield
    finally:
        module._gathered = False


@contextlib.contextmanager
def _unwrapped(model: nn.Module) -> Iterator[None]:
    """Take the wrappers of `FSDPStrategy` away, which gather and let go in each forward pass, even of what is whole."""
    wrapped = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, FullyShardedDataParallel)
    ]
    for parent, name, child in wrapped:
        parent._modules[name] = child.module
    try:
        yield
    finally:
        for parent, name, child in wrapped:
            parent._modules[name] = child


@contextlib.contextmanager
def _unsharded(model: FSDPModule) -> Iterator[None]:
    units = [unit for unit in model.modules() if isinstance(unit, FSDPModule)]  # type: ignore[attr-defined]
    for unit in units:
        unit.unshard()
        unit.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for unit in units:
            unit.set_reshard_after_forward(unit is not model, recurse=False)
            unit.reshard()


def whole(value: Any) -> Any:
    """Return a tensor of which this rank may hold a part as a plain one; anything else as it is. Every rank must call it."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def full_state_dict(model: nn.Module, trainer: Trainer | None = None) -> dict[str, Tensor]:
    """Return all weights of a model, whole, on the CPU; every rank must call it, and every rank gets them.

    Args:
        model: one that was given to `place`.
        trainer: needed for models under Lightning's `FSDPStrategy`, which do not know that they are sharded.
    """
    with gathered(trainer) if trainer is not None else contextlib.nullcontext():
        return {name: whole(value.detach()).cpu().clone() for name, value in _named_tensors(model)}


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield what a state dictionary holds; `state_dict` itself does more under `FSDPStrategy`, and in other names."""
    for prefix, module in model.named_modules(remove_duplicate=False):
        path = "".join(f"{part}." for part in prefix.split(".") if part not in ("", _WRAPPED))
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            yield path + name, parameter
        for name, buffer in module.named_buffers(recurse=False, remove_duplicate=False):
            if name not in module._non_persistent_buffers_set:
                yield path + name, buffer


def gradient_norm(trainer: Trainer, parameters: Iterable[nn.Parameter]) -> Tensor:
    """Return the norm of the gradients of all parameters together, the same on every rank; every rank must call it."""
    model: Any = trainer.strategy.model
    if isinstance(model, FullyShardedDataParallel):
        # The only way to the norm over ranks is to clip by it; by infinity nothing changes.
        return model.clip_grad_norm_(float("inf"))
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return whole(torch.nn.utils.get_total_norm(grads))


def clip_gradients(trainer: Trainer, max_norm: float) -> bool:
    """Clip by norm where Lightning cannot, under `FSDPStrategy`; tell whether that was so."""
    model: Any = trainer.strategy.model
    if not isinstance(model, FullyShardedDataParallel):
        return False
    model.clip_grad_norm_(max_norm)
    return True

"""Models whose parameters are sharded over ranks: what to shard, and how to gather it.

Algorithms call `place` on each model that they load, `gathered` around sampling, and `full_state_dict` to export. Under
strategies that do not shard, the first two change nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar, cast
from weakref import WeakSet

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.distributed.fsdp import fully_shard as shard_module
from torch.distributed.tensor import DTensor

from rl_lightning.errors import UserError
from rl_lightning.models.adapters import WRAPPED
from rl_lightning.models.families import decoder_layers
from rl_lightning.strategies.handing_out import hand_out

ModelT = TypeVar("ModelT", bound=nn.Module)
ValueT = TypeVar("ValueT")

#: Models that are gathered at the moment.
_whole_now: WeakSet[object] = WeakSet()


def place(model: ModelT, trainer: Trainer | None) -> ModelT:
    """Shard a loaded model over the ranks, in place, if the Trainer's strategy shards; return it.

    Each decoder layer is a unit that is gathered, used and freed; the rest of the model is one more unit.

    Args:
        model: with all weights; ranks that are given them (`is_given_weights`) may have its outline on the device `meta`.
        trainer: None for a model that is used without one.

    Raises:
        UserError: for tensor parallelism, which is not supported.
    """
    strategy = None if trainer is None else trainer.strategy
    if isinstance(strategy, FSDPStrategy):
        # Lightning wraps the LightningModule later, by one policy for all models in it.
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
            hand_out(layer, strategy.root_device)
            shard_module(layer, mesh=mesh, **options)
        hand_out(model, strategy.root_device)
        # Embedding, last norm and head stay gathered: the backward pass, which follows at once, begins with the head.
        shard_module(model, mesh=mesh, **{**options, "reshard_after_forward": False})
    return model


class _WrapLayers:
    """A policy for `FSDPStrategy` that wraps decoder layers; every model that is loaded adds its class of layers.

    Args:
        classes: of the layers to wrap.
    """

    def __init__(self, classes: set[type[nn.Module]]) -> None:
        self.classes = classes

    def __call__(self, module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
        """Tell torch whether to look inside a module (`recurse`), or whether to wrap it (not `recurse`)."""
        return recurse or isinstance(module, tuple(self.classes))


@contextlib.contextmanager
def gathered(trainer: Trainer, *models: nn.Module) -> Iterator[None]:
    """Inside this context, every rank holds all parameters of the models.

    Without it, sampling would gather every layer for every token, and ranks whose longest responses differ in length would wait
    for each other for ever. All ranks enter it together; inside, each may do what it likes but train. It may be nested.

    Args:
        trainer: says how models are sharded.
        *models: to gather; under Lightning's `FSDPStrategy` the whole LightningModule is, whatever these are.
    """
    strategy = trainer.strategy
    with contextlib.ExitStack() as stack:
        if isinstance(strategy, FSDPStrategy):
            whole = strategy.model
            if isinstance(whole, FullyShardedDataParallel) and whole not in _whole_now:
                stack.enter_context(_flag(whole))
                stack.enter_context(FullyShardedDataParallel.summon_full_params(whole, writeback=False))
                stack.enter_context(_unwrapped(whole))
        else:
            for model in models:
                if isinstance(model, FSDPModule) and model not in _whole_now:
                    stack.enter_context(_flag(model))
                    stack.enter_context(_unsharded(model))
        yield


@contextlib.contextmanager
def _flag(module: object) -> Iterator[None]:
    _whole_now.add(module)
    try:
        yield
    finally:
        _whole_now.discard(module)


@contextlib.contextmanager
def _unwrapped(model: nn.Module) -> Iterator[None]:
    """Remove the wrappers of `FSDPStrategy`, which gather and free in each forward pass, even what is gathered already."""
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


def whole(value: ValueT) -> ValueT | Tensor:
    """Return a sharded tensor gathered, and any other value as it is. All ranks call this together."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def full_state_dict(model: nn.Module, trainer: Trainer | None = None, here: bool = True) -> dict[str, Tensor]:
    """Return all weights of a model, gathered tensor by tensor, as copies on the CPU. All ranks call this together.

    Args:
        model: one that was given to `place`.
        trainer: needed under Lightning's `FSDPStrategy`, whose parameters do not show that they are sharded.
        here: whether this rank wants them; it is given none otherwise.
    """
    with gathered(trainer) if trainer is not None else contextlib.nullcontext():
        found = ((name, whole(value.detach())) for name, value in _named_tensors(model))
        return {name: value.cpu().clone() for name, value in found if here}


class WholeWeights(Mapping[str, Tensor]):
    """All weights of a model by name, each gathered on its own device whenever it is looked up, which all ranks do together.

    Nothing is copied that is not sharded. Under Lightning's `FSDPStrategy` the model must be gathered already, by `gathered`.

    Args:
        model: one that was given to `place`.
    """

    def __init__(self, model: nn.Module) -> None:
        self._tensors = dict(_named_tensors(model))

    def __getitem__(self, name: str) -> Tensor:
        return cast(Tensor, whole(self._tensors[name].detach()))

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the entries of a state dictionary. Under `FSDPStrategy`, `state_dict` itself would rename and gather them."""
    for prefix, module in model.named_modules(remove_duplicate=False):
        path = "".join(f"{part}." for part in prefix.split(".") if part not in ("", WRAPPED))
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            yield path + name, parameter
        for name, buffer in module.named_buffers(recurse=False, remove_duplicate=False):
            if name not in module._non_persistent_buffers_set:
                yield path + name, buffer


def gradient_norm(trainer: Trainer, parameters: Iterable[nn.Parameter]) -> Tensor:
    """Return the 2-norm of all gradients together, a scalar, the same on every rank. All ranks call this together."""
    model = trainer.strategy.model
    if isinstance(model, FullyShardedDataParallel):
        # The norm over ranks comes from clipping alone; clipping at infinity changes nothing.
        return model.clip_grad_norm_(float("inf"))
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return whole(torch.nn.utils.get_total_norm(grads))


def clip_gradients(trainer: Trainer, max_norm: float) -> bool:
    """Clip gradients by their 2-norm under `FSDPStrategy`, where Lightning cannot; return whether they were clipped here."""
    model = trainer.strategy.model
    if not isinstance(model, FullyShardedDataParallel):
        return False
    model.clip_grad_norm_(max_norm)
    return True

"""No randomness in forward passes: a model computes in training what it computes in evaluation.

With dropout, router jitter or skipped layers, the policy that is trained differs from the policy that sampled, and their ratio
is not 1 before the first update. Model families have many names for such noise, but all of it is off in evaluation mode. So
the forward pass runs in evaluation mode even if the modules are in training mode, and so does the recomputation of gradient
checkpointing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from rl_lightning.models.families import decoder_layers

Output = TypeVar("Output")

#: Model → for each of its forward passes that are running, innermost last, the modules to put back into training mode.
_switched: WeakKeyDictionary[nn.Module, list[list[nn.Module]]] = WeakKeyDictionary()


def silence(model: PreTrainedModel) -> None:
    """Make the forward pass of a model, and of each model inside it, run in evaluation mode.

    After the pass `training` is as it was, so it still tells whether the model is being trained.
    """
    for part in model.modules():
        if isinstance(part, PreTrainedModel):
            part.register_forward_pre_hook(_enter)
            part.register_forward_hook(_leave, always_call=True)


def hooked_by_others(module: nn.Module) -> bool:
    """Return whether a module has forward hooks other than those of `silence`."""
    hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    return any(hook not in (_enter, _leave) for hook in hooks)


def _enter(model: nn.Module, inputs: object) -> None:
    # Skip the walk over the modules if it is not needed: it takes as long as a decoding step of a small model.
    _switched.setdefault(model, []).append(_to_evaluation(model) if model.training else [])


def _leave(model: nn.Module, inputs: object, output: object) -> None:
    for module in _switched[model].pop():
        module.training = True


def _to_evaluation(model: nn.Module, keep: bool = True) -> list[nn.Module]:
    """Put a model and all its modules into evaluation mode.

    Args:
        model: the model.
        keep: leave layers with gradient checkpointing in training mode. In evaluation mode transformers would not
            checkpoint them; `_recomputed` switches the mode before they compute.

    Returns:
        The modules whose mode has changed.
    """
    training = [module for module in model.modules() if module.training]
    if keep:
        training = [module for module in training if not _is_recomputing(module)]
    for module in training:
        module.training = False
    return training


def _is_recomputing(module: nn.Module) -> bool:
    return isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing


def recompute_layers(model: PreTrainedModel, offload: bool = False) -> None:
    """Turn on gradient checkpointing: each layer recomputes its activations in the backward pass, in evaluation mode both times.

    If no layer supports gradient checkpointing, as in code that comes with a model, the layers are wrapped from outside.

    Args:
        model: gets it.
        offload: what layers keep, their inputs, waits in the host's memory.
    """
    layers: list[Any] = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]
    for layer in layers:
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = partial(_recomputed, layer, offload)
    for other in [] if layers else decoder_layers(model):
        other.forward = partial(_recomputed, other, offload, other.forward)


def _recomputed(layer: nn.Module, offload: bool, run: Callable[..., Output], *inputs: object, **options: Any) -> Output:
    """Run a layer, or a function of it, in evaluation mode and without keeping activations for the backward pass."""

    def in_evaluation(*inputs: object, **options: Any) -> Output:
        with _evaluating(layer):
            return run(*inputs, **options)

    if not torch.is_grad_enabled():
        return in_evaluation(*inputs, **options)
    with _on_host(inputs) if offload else contextlib.nullcontext():
        output: Output = checkpoint(in_evaluation, *inputs, use_reentrant=False, **options)
    return output


def _on_host(inputs: Sequence[object]) -> contextlib.AbstractContextManager[object]:
    """Return a context in which what autograd keeps waits in pinned memory; one that does nothing for what is on the host already."""
    kinds = {one.device.type for one in inputs if isinstance(one, Tensor)} - {"cpu"}
    return save_on_cpu(pin_memory=True, device_type=kinds.pop()) if kinds else contextlib.nullcontext()


@contextlib.contextmanager
def _evaluating(layer: nn.Module) -> Iterator[None]:
    training = _to_evaluation(layer, keep=False)
    try:
        yield
    finally:
        for module in training:
            module.training = True

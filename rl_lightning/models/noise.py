"""Training without noise: what a loaded network computes in training is what it computes in evaluation.

A policy that drops units, jitters its router or skips layers at random is not the policy that sampled, so the ratio of the two
would not be 1 before the first update. Families have many names for their noise, and code that comes with a model has names of
its own; what all of it has in common is that it is off in evaluation mode. So the forward pass runs in that mode, whatever mode
the modules are in, and so does what gradient checkpointing computes again in the backward pass.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from rl_lightning.models.families import decoder_layers

#: Models within a forward pass → the modules to put back into training mode after each pass, the innermost last.
_switched: WeakKeyDictionary[nn.Module, list[list[nn.Module]]] = WeakKeyDictionary()


def silence(model: PreTrainedModel) -> None:
    """Let a model, and each model inside it, compute in evaluation mode even where its modules are in training mode.

    The modes themselves stay as they are set: `training` goes on saying whether somebody trains the model.
    """
    for part in model.modules():
        if isinstance(part, PreTrainedModel):
            part.register_forward_pre_hook(_enter)
            part.register_forward_hook(_leave, always_call=True)


def hooked_by_others(module: nn.Module) -> bool:
    """Tell whether a module has forward hooks beside those of `silence`."""
    hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    return any(hook not in (_enter, _leave) for hook in hooks)


def _enter(model: nn.Module, inputs: Any) -> None:
    # Looking at every module takes as long as a decoding step of a small model.
    _switched.setdefault(model, []).append(_to_evaluation(model) if model.training else [])


def _leave(model: nn.Module, inputs: Any, output: Any) -> None:
    for module in _switched[model].pop():
        module.training = True


def _to_evaluation(model: nn.Module, keep: bool = True) -> list[nn.Module]:
    """Put a model into evaluation mode.

    Args:
        model: with all of its modules.
        keep: leave those layers in training mode that compute again: transformers has them look at their mode, and
            `_recomputed` changes it before they compute anything.

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


def recompute_layers(model: PreTrainedModel) -> None:
    """Let the layers of a model compute their activations again in the backward pass, in evaluation mode both times.

    Layers that do not know gradient checkpointing, as those of code that comes with a model, are computed again from outside.
    """
    layers: list[Any] = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]
    for layer in layers:
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = partial(_recomputed, layer)
    for other in [] if layers else decoder_layers(model):
        other.forward = partial(_recomputed, other, other.forward)


def _recomputed(layer: nn.Module, run: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
    """Run a layer, or a part of it, without keeping activations."""

    def in_evaluation(*inputs: Any, **options: Any) -> Any:
        with _evaluating(layer):
            return run(*inputs, **options)

    if not torch.is_grad_enabled():
        return in_evaluation(*inputs, **options)
    return checkpoint(in_evaluation, *inputs, use_reentrant=False, **options)


@contextlib.contextmanager
def _evaluating(layer: nn.Module) -> Iterator[None]:
    training = _to_evaluation(layer, keep=False)
    try:
        yield
    finally:
        for module in training:
            module.training = True

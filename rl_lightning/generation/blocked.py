"""Copies of the weights of linear layers for as long as a policy is sampled: in oneDNN's blocked format, which a CPU multiplies fastest
by the few rows of a decoding step, and in the dtype of autocast."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

#: A weight of fewer numbers stays in the processor's caches, where blocks gain nothing.
_WORTH_IT = 1 << 16

#: Layers that models call one after the other on the same states: one product of both or all three is cheaper.
_TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


@contextlib.contextmanager
def blocked_weights(model: nn.Module, rows: int) -> Iterator[None]:
    """Inside this context, a model's linear layers multiply by copies of their weights in oneDNN's blocked format.

    A product of 16 rows and a float32 weight stored row by row takes up to twice as long as one with a blocked weight. The
    copies take as much memory as the weights, and 0.1 s to make for 100 million numbers; they are freed at the end. Nothing
    happens except in float32 on a CPU with oneDNN.

    Args:
        model: its weights must not change inside the context.
        rows: about how many rows will be multiplied at a time.
    """
    changed: list[nn.Linear] = []
    try:
        if torch.backends.mkldnn.is_available() and not torch.is_autocast_enabled("cpu"):
            for layers in _read_together(model):
                product = _Product(layers, rows)
                for place, layer in enumerate(layers):
                    layer.forward = partial(product, place)  # type: ignore[method-assign]
                    changed.append(layer)
        yield
    finally:
        for layer in changed:
            del layer.forward


@contextlib.contextmanager
def narrow_weights(model: nn.Module) -> Iterator[None]:
    """Inside this context, a model's linear layers have their weights in autocast's dtype.

    Autocast casts weights anew in every step of decoding: frozen ones always, and under Lightning, which turns its cache off, trained ones
    too. The copies take half the memory of float32 weights, and are freed at the end. Nothing happens without autocast.

    Args:
        model: its weights must not change inside the context.
    """
    changed: list[nn.Linear] = []
    try:
        for layer in (module for module in model.modules() if type(module) is nn.Linear):
            device, weight = layer.weight.device.type, layer.weight
            wide = torch.is_autocast_enabled(device) and weight.dtype != torch.get_autocast_dtype(device)
            if wide and "forward" not in vars(layer):
                dtype = torch.get_autocast_dtype(device)
                bias = None if layer.bias is None else layer.bias.detach().to(dtype)
                layer.forward = partial(_linear, weight.detach().to(dtype), bias)  # type: ignore[method-assign]
                changed.append(layer)
        yield
    finally:
        for layer in changed:
            del layer.forward


def _linear(weight: Tensor, bias: Tensor | None, states: Tensor) -> Tensor:
    return nn.functional.linear(states, weight, bias)


def _read_together(model: nn.Module) -> list[list[nn.Linear]]:
    """Return the linear layers that gain from blocks, in lists that read the same states."""
    found: list[list[nn.Linear]] = []
    for parent in model.modules():
        left = {name: child for name, child in parent.named_children() if type(child) is nn.Linear}
        left = {name: child for name, child in left.items() if _gains(child.weight) and "forward" not in vars(child)}
        for names in _TOGETHER:
            group = [left[name] for name in names if name in left]
            if len(group) > 1 and len({layer.bias is None for layer in group}) == 1:
                found.append(group)
                left = {name: child for name, child in left.items() if name not in names}
        found += [[layer] for layer in left.values()]
    return found


def _gains(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.numel() >= _WORTH_IT


class _Product:
    """x ↦ x Wᵀ + b for one layer, or for several that are multiplied at once:

        q_proj (Q, H), k_proj (K, H), v_proj (K, H)  →  W (Q + K + K, H), kept blocked
        x (n, 1, H)  →  x Wᵀ (n, 1, Q + K + K)       →  split into the three outputs

    The first layer to be called computes the product; the others find their part of it.

    Args:
        layers: of the same input size H.
        rows: about how many rows x has.
    """

    def __init__(self, layers: Sequence[nn.Linear], rows: int) -> None:
        self._kernels = torch.ops.mkldnn
        self._sizes = [layer.out_features for layer in layers]
        weights = [layer.weight.detach() for layer in layers]
        biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
        self._blocks = self._kernels._reorder_linear_weight(
            torch.cat(weights) if len(weights) > 1 else weights[0], rows
        )
        self._bias = torch.cat(biases) if biases else None
        self._states: Tensor | None = None
        self._parts: tuple[Tensor, ...] = ()

    def __call__(self, place: int, states: Tensor) -> Tensor:
        """Return the output of layer number `place`; the same `states` are not multiplied twice in a row."""
        if states is not self._states:
            whole: Tensor = self._kernels._linear_pointwise(states, self._blocks, self._bias, "none", [], "")
            self._states = states
            self._parts = whole.split(self._sizes, -1) if len(self._sizes) > 1 else (whole,)
        return self._parts[place]

"""Weights in blocks, as a CPU multiplies them fastest by the few rows of a decoding step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

#: Below this many numbers a weight stays in the processor's caches, and its blocks would gain nothing.
_WORTH_IT = 1 << 16

#: Layers that families of models call one after the other on the same states: one product is cheaper than three.
_TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


@contextlib.contextmanager
def blocked_weights(model: nn.Module, rows: int) -> Iterator[None]:
    """Let a model's linear layers multiply by copies of their weights in oneDNN's blocked format, while this lasts.

    A product of 16 rows and a float32 weight in rows takes up to twice as long as one with blocks. The copies take as much
    memory as the weights and a tenth of a second to make for 100 million numbers; they are gone before gradients come.
    Anywhere but in float32 on a CPU with oneDNN nothing happens.

    Args:
        model: its weights must not change meanwhile.
        rows: about as many as will be multiplied at a time.
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


def _read_together(model: nn.Module) -> list[list[nn.Linear]]:
    """Return the linear layers that gain, those together that read the same states."""
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
    """x ↦ x Wᵀ + b of several layers at once, which each asks its part of.

    Args:
        layers: with as many columns each.
        rows: of x, about.
    """

    def __init__(self, layers: Sequence[nn.Linear], rows: int) -> None:
        self._kernels: Any = torch.ops.mkldnn
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
        """Return one layer's part of the product; states that another layer has just asked with are not multiplied again."""
        if states is not self._states:
            whole: Tensor = self._kernels._linear_pointwise(states, self._blocks, self._bias, "none", [], "")
            self._states = states
            self._parts = whole.split(self._sizes, -1) if len(self._sizes) > 1 else (whole,)
        return self._parts[place]

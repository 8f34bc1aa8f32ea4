"""Weights in blocks, as a CPU multiplies them fastest by the few rows of a decoding step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

#: Below this many numbers a weight stays in the processor's caches, and its blocks would gain nothing.
_WORTH_IT = 1 << 16


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
            for layer in model.modules():
                if type(layer) is nn.Linear and _gains(layer.weight):
                    layer.forward = _blocked(layer.weight.detach(), layer.bias, rows)  # type: ignore[method-assign, assignment]
                    changed.append(layer)
        yield
    finally:
        for layer in changed:
            del layer.forward


def _gains(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.numel() >= _WORTH_IT


def _blocked(weight: Tensor, bias: Tensor | None, rows: int) -> Callable[[Tensor], Tensor]:
    """Return x ↦ x Wᵀ + b."""
    kernels: Any = torch.ops.mkldnn
    blocks = kernels._reorder_linear_weight(weight, rows)

    def forward(states: Tensor) -> Tensor:
        product: Tensor = kernels._linear_pointwise(states, blocks, bias, "none", [], "")
        return product

    return forward

"""The plain model that computes what an adapted or a quantised one computes: its weights one by one, and on disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.pytorch_utils import Conv1D

from rl_lightning.models.adapters import ADAPTER, BASE, WRAPPED, adapter_layers, is_adapter_weight, merge
from rl_lightning.models.quantized import is_quantized, quantized_layers, unquantized_outline, whole_weight

if TYPE_CHECKING:
    from bitsandbytes.nn import Linear4bit, Linear8bitLt


def plain_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights of a plain model, of the same class, that computes what an adapted or a quantised model computes.

    One weight is made at a time: adapters are merged into it, and one of 4 or 8 bits is given as the model multiplies by it, in its dtype.

    Args:
        model: the model; layers with an adapter hold their scaling s.
        weights: name → weight, unsharded, for all weights of the model, under the names of an unsharded model. Each is looked up once, and
            in the same order on every rank.

    Yields:
        Name and weight under the names of the plain class.
    """
    packed = {f"{name}.weight": layer for name, layer in quantized_layers(model)}
    adapted = {
        f"{path.replace(f'{WRAPPED}.', '')}.{BASE}.weight": layer for path, layer in adapter_layers(model).items()
    }
    for name in weights:
        if is_adapter_weight(name):
            continue
        weight = weights[name]
        if name in packed:
            weight = _unpacked(model, packed[name]).to(weight.device)
        if name in adapted:
            path, layer = name.removesuffix(f".{BASE}.weight"), adapted[name]
            a, b = (weights[f"{path}.lora_{letter}.{ADAPTER}.weight"] for letter in "AB")
            weight = merge(weight, a, b, layer.scaling[ADAPTER], layer.fan_in_fan_out)
        if name in packed and issubclass(cast(type, packed[name].source_cls), Conv1D):
            # GPT-2 keeps its weights as (in, out).
            weight = weight.T.contiguous()
        yield _without_base(name), weight


def _unpacked(model: nn.Module, layer: Linear4bit | Linear8bitLt) -> Tensor:
    dtype = next(weight.dtype for weight in model.parameters() if weight.is_floating_point())
    return whole_weight(layer).to(dtype)


def save_plain(model: PreTrainedModel, weights: Mapping[str, Tensor], target: Path) -> None:
    """Write a plain model that computes what a model computes, be it adapted or quantised, in Hugging Face format.

    Args:
        model: its class and configuration are saved.
        weights: name → weight, unsharded, for all weights of the model.
        target: the directory to write to.
    """
    _shown(model).save_pretrained(target, state_dict=dict(plain_weights(model, weights)))


def is_stored_by_name(model: PreTrainedModel) -> bool:
    """Return whether files in Hugging Face format hold the weights of `plain_weights` as they are, under their names.

    Some architectures are stored otherwise: layers of experts, which are one tensor in the model, are one tensor an expert there.
    """
    layers = (_without_base(name) for name, _ in model.named_parameters() if not is_adapter_weight(name))
    marks = {name: torch.empty(1, number + 2, device="meta") for number, name in enumerate(layers)}
    try:
        stored = revert_weight_conversion(_shown(model), dict(marks))
    except (RuntimeError, ValueError, IndexError, KeyError):
        # What is cut up or put together does not work on marks of these shapes.
        return False
    return stored.keys() == marks.keys() and all(stored[name].shape == mark.shape for name, mark in marks.items())


def _without_base(name: str) -> str:
    return name.replace(f".{BASE}.", ".").replace(f"{WRAPPED}.", "")


def _shown(model: PreTrainedModel) -> PreTrainedModel:
    """Return a model whose class and configuration are those of the plain one."""
    return unquantized_outline(model) if is_quantized(model) else model

"""Which layers of a model get an adapter."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rl_lightning.errors import UserError
from rl_lightning.models.quantized import is_quantized_layer
from rl_lightning.models.seeding import seeded


def heads_of(model: PreTrainedModel) -> list[str]:
    """Return the names of a classifier's children besides its backbone; none for other models."""
    backbone = model.base_model
    if backbone is model or model.get_output_embeddings() is not None:
        return []
    return [name for name, child in model.named_children() if child is not backbone]


def targets(model: PreTrainedModel, wanted: list[str] | str, left_out: Sequence[str]) -> list[str]:
    """Return the names of the layers that get an adapter.

    Args:
        model: the model to adapt.
        wanted: see `LoraOptions.target_modules`.
        left_out: names of modules that get no adapter, with all that is inside them.

    Raises:
        UserError: for names that fit no linear layer, for layers that an adapter cannot be merged into, and if no layer is left.
    """
    linear = {path: layer for path, layer in model.named_modules() if isinstance(layer, (nn.Linear, Conv1D))}
    if wanted == "all-linear":
        head = model.get_output_embeddings()
        paths = [path for path, layer in linear.items() if layer is not head]
    else:
        names = [wanted] if isinstance(wanted, str) else wanted
        patterns = {name: name if isinstance(wanted, str) else rf"(.*\.)?{re.escape(name)}" for name in names}
        _check_targets(model, patterns, linear)
        paths = [path for path in linear if any(re.fullmatch(pattern, path) for pattern in patterns.values())]
    paths = [path for path in paths if not any(path == name or path.startswith(f"{name}.") for name in left_out)]
    if not paths:
        raise UserError(f"lora: no linear layer of this {type(model).__name__} is left to adapt: train it without lora")
    return paths


def _check_targets(model: PreTrainedModel, patterns: dict[str, str], linear: Mapping[str, nn.Module]) -> None:
    """Refuse names that fit no linear layer, and layers that an adapter cannot be merged into.

    Args:
        model: the model to adapt.
        patterns: name in `target_modules` → regular expression for names of layers.
        linear: name → linear layer of the model.

    Raises:
        UserError: naming one of them.
    """
    layers = {name: layer for name, layer in model.named_modules() if name}
    for name, pattern in patterns.items():
        found = {path: layer for path, layer in layers.items() if re.fullmatch(pattern, path)}
        other = [path for path in found if path not in linear]
        if not found or other:
            what = f"is {other[0]}, which is no linear layer" if other else "is no layer"
            if any(re.fullmatch(pattern, path) for path in experts(model)):
                what = "is a tensor of all experts together, which no adapter is added to, not a layer"
            kinds = sorted({path.split(".")[-1] for path in linear})
            raise UserError(
                f"lora.target_modules: {name!r} {what} of this {type(model).__name__}: its linear layers are {', '.join(kinds)}"
            )
        shared = model.get_input_embeddings().weight
        tied = [path for path, layer in found.items() if layer.weight is shared]
        if tied:
            raise UserError(
                f"lora.target_modules: {tied[0]} shares its weights with the embeddings, so an adapter could not be merged into "
                "it: leave it out"
            )


def unlike_linear(model: nn.Module) -> list[str]:
    """Return the names of linear layers that compute something else than W x + b, as some routers do: an adapter would have no
    effect there, or fail."""
    own = [
        (name, layer)
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear)
        and type(layer).forward is not nn.Linear.forward
        and not is_quantized_layer(layer)
    ]
    with seeded(), torch.no_grad():
        return [name for name, layer in own if not _multiplies(layer)]


def _multiplies(layer: nn.Linear) -> bool:
    """Return whether a layer computes W x + b, tried on one example; one without weights yet, on any weights."""
    if layer.weight.is_meta:
        layer = copy.deepcopy(layer).to_empty(device="cpu")
        for one in layer.parameters():
            one.uniform_(-1, 1)
    x = torch.linspace(-1, 1, layer.in_features, dtype=layer.weight.dtype, device=layer.weight.device).expand(1, 2, -1)
    expected = nn.functional.linear(x, layer.weight, layer.bias)
    try:
        returned = layer(x.clone())
    except RuntimeError:  # it takes another shape
        return False
    return isinstance(returned, Tensor) and torch.allclose(returned, expected, rtol=1e-2)


def experts(model: nn.Module) -> list[str]:
    """Return the names of weights that hold all experts in one tensor, (experts, ·, ·); these get no adapter."""
    return [
        f"{path}.{name}"
        for path, module in model.named_modules()
        if not type(module).__module__.startswith("torch.nn.")  # a convolution has three dimensions too
        for name, weight in module.named_parameters(recurse=False)
        if weight.dim() == 3 and min(weight.shape) > 1
    ]

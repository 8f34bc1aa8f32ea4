"""LoRA: a frozen model, and a small trained addition to each of its linear layers."""

from __future__ import annotations

import contextlib
import logging
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rl_lightning.errors import UserError
from rl_lightning.models.seeding import seeded

#: What peft calls an adapter that is the only one.
ADAPTER = "default"
#: What `FSDPStrategy` puts between the names of a layer and of its parts.
_WRAPPED = "_fsdp_wrapped_module"
#: What peft calls the layer that an adapter is added to.
_BASE = "base_layer"

log = logging.getLogger(__name__)


@dataclass
class LoraOptions:
    """Train y = W x + s B A x with W frozen, for A of r rows and B of r columns; s = α/r.

    A begins random, as a function of the run's seed alone, and B at 0, so that the model begins as it was loaded.

    Source: Hu et al. (arXiv 2106.09685) Eq. 3; `rank_stabilized`: Kalajdzievski (2312.03732). Departure: there is no dropout,
    since a policy that drops units at random is not the one that sampled. Adapters of a model in half precision are float32.

    Args:
        rank: r ≥ 1.
        alpha: α > 0.
        rank_stabilized: s = α/√r, under which the size of updates does not shrink as the rank grows.
        target_modules: `all-linear`, which leaves out the language-model head; or the last parts of the names of linear
            layers, such as [q_proj, v_proj]; or a regular expression for whole names.
    """

    rank: int = 16
    alpha: float = 32.0
    rank_stabilized: bool = False
    target_modules: list[str] | str = "all-linear"

    def __post_init__(self) -> None:
        """Refuse what trains nothing."""
        if self.rank < 1:
            raise UserError(f"lora.rank must be at least 1, not {self.rank}")
        if self.alpha <= 0:
            raise UserError(f"lora.alpha must be above 0, not {self.alpha:g}")
        if not self.target_modules:
            raise UserError(
                "lora.target_modules is empty, so nothing would be trained: leave it out for all linear layers"
            )

    @property
    def scaling(self) -> float:
        """s, what B A x is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)

    def __str__(self) -> str:
        return f"rank {self.rank}, alpha {self.alpha:g}{', rank-stabilized' if self.rank_stabilized else ''}"


def add_adapter(model: PreTrainedModel, options: LoraOptions) -> PreTrainedModel:
    """Freeze a loaded model and give its linear layers an adapter, in place; the head of a classifier stays trained in full.

    The model keeps its class: whatever could be done with it before can be done with it still.

    Raises:
        UserError: if peft is missing or does not know how, or `target_modules` names what is no linear layer.
    """
    try:
        from peft import LoraConfig, TaskType, inject_adapter_in_model
    except ImportError as error:
        raise UserError("lora needs peft: pip install 'rl_lightning[lora]'") from error
    heads = _heads(model)
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS if heads else TaskType.CAUSAL_LM,
        r=options.rank,
        lora_alpha=options.alpha,  # type: ignore[arg-type]
        use_rslora=options.rank_stabilized,
        fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in model.modules()),
        target_modules=_targets(model, options, [*heads, *_unlike_linear(model)]),
    )
    # Of a family that it knows, peft takes some names for those of experts, and adapts tensors that nobody named. Behind a name
    # more it sees layers and no family.
    inside = nn.ModuleDict({"model": model})
    try:
        with seeded():
            inject_adapter_in_model(config, inside, ADAPTER)
    except ValueError as error:
        raise UserError(
            f"lora: peft cannot adapt this {type(model).__name__}: {' '.join(str(error).split())}"
        ) from error
    # `save_adapter` looks for peft's settings where peft keeps them.
    model.peft_config = inside.peft_config  # type: ignore[assignment]
    for layer in adapter_layers(model).values():
        for part in (layer.lora_A, layer.lora_B):
            part.to(_wide(layer.base_layer.weight.dtype))
    log.info("lora: %s", describe_adapter(model))
    for name in heads:
        head: nn.Module = model.get_submodule(name).requires_grad_(True)
        dtype = next(head.parameters()).dtype
        if dtype != _wide(dtype):
            head.to(_wide(dtype)).register_forward_pre_hook(_to_own_dtype)
    return model


def _unlike_linear(model: nn.Module) -> list[str]:
    """Return the names of linear layers that do more with their weight than to multiply by it, as some routers do: they would
    have no use for an adapter, or break with one."""
    own = [
        (name, layer)
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and type(layer).forward is not nn.Linear.forward
    ]
    with seeded(), torch.no_grad():
        return [name for name, layer in own if not _multiplies(layer)]


def _multiplies(layer: nn.Linear) -> bool:
    """Tell whether what a layer returns is W x + b, by an example."""
    x = torch.linspace(-1, 1, layer.in_features, dtype=layer.weight.dtype, device=layer.weight.device).expand(1, 2, -1)
    expected = nn.functional.linear(x, layer.weight, layer.bias)
    try:
        returned = layer(x.clone())
    except RuntimeError:  # it takes another shape
        return False
    return isinstance(returned, Tensor) and torch.allclose(returned, expected, rtol=1e-2)


def experts(model: nn.Module) -> list[str]:
    """Return the names of the weights of experts that are stored as one tensor, (experts, ·, ·), which get no adapter."""
    return [
        f"{path}.{name}"
        for path, module in model.named_modules()
        if not type(module).__module__.startswith("torch.nn.")  # a convolution has three dimensions too
        for name, weight in module.named_parameters(recurse=False)
        if weight.dim() == 3 and min(weight.shape) > 1
    ]


def describe_adapter(model: nn.Module) -> str:
    """Return, for people, which layers of a model have an adapter, and what is left out besides its embeddings and head."""
    kinds = Counter(name.split(".")[-1] for name in adapter_layers(model))
    said = "adapts " + ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    left_out = Counter(name.split(".")[-1] for name in experts(model))
    if left_out:
        said += "; experts stored as one tensor stay as they are: " + ", ".join(
            f"{count} {kind}" for kind, count in left_out.items()
        )
    return said


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Return the precision in which what is trained beside weights of another one is kept: float32 at least."""
    return torch.promote_types(dtype, torch.float32)


def _to_own_dtype(head: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Hand a head what it reads in the precision that it computes in, which is no longer its backbone's."""
    dtype = next(head.parameters()).dtype
    return tuple(value.to(dtype) if isinstance(value, Tensor) else value for value in inputs)


def _heads(model: PreTrainedModel) -> list[str]:
    """Return the names of what a classifier has besides its backbone; nothing for other models."""
    backbone = model.base_model
    if backbone is model or model.get_output_embeddings() is not None:
        return []
    return [name for name, child in model.named_children() if child is not backbone]


def _targets(model: PreTrainedModel, options: LoraOptions, left_out: Sequence[str]) -> list[str]:
    """Return the names of the layers that get an adapter.

    Args:
        model: to be adapted.
        options: which names are wanted.
        left_out: names of modules that get none, nor what is inside them.

    Raises:
        UserError: for names that fit no layer, layers that an adapter could not be merged into, and if no layer is left.
    """
    wanted = options.target_modules
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


def _check_targets(model: PreTrainedModel, patterns: dict[str, str], linear: dict[str, Any]) -> None:
    """Refuse names that fit no layer, and layers that an adapter could not be merged into.

    Raises:
        UserError: naming them.
    """
    layers = {name: layer for name, layer in model.named_modules() if name}
    for name, pattern in patterns.items():
        found: dict[str, Any] = {path: layer for path, layer in layers.items() if re.fullmatch(pattern, path)}
        other = [path for path in found if path not in linear]
        if not found or other:
            what = f"is {other[0]}, which is no linear layer" if other else "is no layer"
            if any(re.fullmatch(pattern, path) for path in experts(model)):
                what = "is a tensor of all experts together, which no adapter is added to, not a layer"
            kinds = sorted({path.split(".")[-1] for path in linear})
            raise UserError(
                f"lora.target_modules: {name!r} {what} of this {type(model).__name__}: its linear layers are {', '.join(kinds)}"
            )
        embeddings: Any = model.get_input_embeddings()
        tied = [path for path, layer in found.items() if layer.weight is embeddings.weight]
        if tied:
            raise UserError(
                f"lora.target_modules: {tied[0]} shares its weights with the embeddings, so an adapter could not be merged into "
                "it: leave it out"
            )


def adapter_layers(model: nn.Module) -> dict[str, Any]:
    """Return the layers that have an adapter, by name; none for a model that is trained in full."""
    inside = f".lora_A.{ADAPTER}."
    names = dict.fromkeys(name.split(inside)[0] for name, _ in model.named_parameters() if inside in name)
    return {name: model.get_submodule(name) for name in names}


def is_adapted(model: nn.Module) -> bool:
    """Tell whether a model has an adapter."""
    return bool(adapter_layers(model))


def is_adapter_weight(name: str) -> bool:
    """Tell whether a weight belongs to an adapter, by its name."""
    return f".lora_A.{ADAPTER}." in name or f".lora_B.{ADAPTER}." in name


@contextlib.contextmanager
def adapter_off(model: nn.Module) -> Iterator[None]:
    """Inside, an adapted model is the one that was loaded, to the last bit; nothing may be trained there."""
    layers = list(adapter_layers(model).values())
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def merge(weight: Tensor, a: Tensor, b: Tensor, scaling: float, transposed: bool) -> Tensor:
    """Return W + s B A, computed in at least float32 and rounded once to the precision of W.

    Args:
        weight: W, (out, in); (in, out) if `transposed`, as GPT-2 keeps it.
        a, b: (r, in) and (out, r).
        scaling: s.
        transposed: how W is kept.
    """
    dtype = _wide(weight.dtype)
    addition = scaling * (b.to(dtype) @ a.to(dtype))
    return (weight.to(dtype) + (addition.T if transposed else addition)).to(weight.dtype)


def merged_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of an adapted model as those of a plain one of its class that does the same.

    Args:
        model: its layers say which are adapted, and by how much.
        weights: all of its weights, whole, under the names that they have in a model that is not sharded.
    """
    plain = {name.replace(f".{_BASE}.", "."): value for name, value in weights.items() if not is_adapter_weight(name)}
    for path, layer in adapter_layers(model).items():
        name = path.replace(f"{_WRAPPED}.", "")
        a, b = (weights[f"{name}.lora_{letter}.{ADAPTER}.weight"] for letter in "AB")
        target = f"{name}.weight"
        plain[target] = merge(plain[target], a, b, layer.scaling[ADAPTER], layer.fan_in_fan_out)
    return plain

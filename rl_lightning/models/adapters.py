"""LoRA: a frozen model with a small trained addition to each of its linear layers."""

from __future__ import annotations

import contextlib
import logging
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rl_lightning.errors import UserError
from rl_lightning.models.adapter_targets import experts, heads_of, targets, unlike_linear
from rl_lightning.models.seeding import seeded
from rl_lightning.typed import Typed

if TYPE_CHECKING:
    from peft.tuners.lora import Linear as LoraLinear

#: peft's name for the only adapter of a model.
ADAPTER = "default"
#: `FSDPStrategy` inserts this between the name of a layer and the names of its parts.
WRAPPED = "_fsdp_wrapped_module"
#: peft's name for the frozen layer inside an adapted one.
BASE = "base_layer"

log = logging.getLogger(__name__)


@dataclass
class LoraOptions(metaclass=Typed):
    """Replace y = W x by y = W x + s B A x with W frozen; A is (r, in), B is (out, r), s = α/r.

    A starts random, as a function of the run's seed alone. B starts at 0, so the model starts as it was loaded. Adapters of a
    model in half precision are float32.

    Source: Hu et al. (arXiv 2106.09685) Eq. 3; `rank_stabilized`: Kalajdzievski (2312.03732). Departure: there is no dropout,
    since with dropout the trained policy is not the one that sampled.

    Args:
        rank: r ≥ 1.
        alpha: α > 0.
        rank_stabilized: use s = α/√r, so that updates do not become smaller as the rank grows.
        target_modules: `all-linear` for every linear layer but the language-model head; or the last parts of the names of
            linear layers, such as [q_proj, v_proj]; or a regular expression that whole names must match.

    Raises:
        UserError: for a rank below 1, an alpha of 0 or less, or an empty list.
    """

    rank: int = 16
    alpha: float = 32.0
    rank_stabilized: bool = False
    target_modules: list[str] | str = "all-linear"

    def __post_init__(self) -> None:
        """Refuse settings under which nothing would be trained."""
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
        """The factor s of B A x."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)

    def __str__(self) -> str:
        return f"rank {self.rank}, alpha {self.alpha:g}{', rank-stabilized' if self.rank_stabilized else ''}"


def add_adapter(model: PreTrainedModel, options: LoraOptions) -> PreTrainedModel:
    """Freeze a loaded model and add adapters to its linear layers, in place; the head of a classifier is trained in full.

    The model keeps its class and its methods.

    Returns:
        The same model.

    Raises:
        UserError: if peft is missing or cannot adapt the model, or `target_modules` names something that is no linear layer.
    """
    try:
        from peft import LoraConfig, TaskType, inject_adapter_in_model
    except ImportError as error:
        raise UserError("lora needs peft: pip install 'rl_lightning[lora]'") from error
    heads = heads_of(model)
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS if heads else TaskType.CAUSAL_LM,
        r=options.rank,
        lora_alpha=options.alpha,  # type: ignore[arg-type]
        use_rslora=options.rank_stabilized,
        fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in model.modules()),
        target_modules=targets(model, options.target_modules, [*heads, *unlike_linear(model)]),
    )
    # In families that it knows, peft takes some names for experts and adapts tensors that were not named. Inside a wrapper it
    # does not recognise the family.
    inside = nn.ModuleDict({"model": model})
    try:
        with seeded():
            inject_adapter_in_model(config, inside, ADAPTER)
    except ValueError as error:
        raise UserError(
            f"lora: peft cannot adapt this {type(model).__name__} ({' '.join(str(error).split())}): name plain linear layers "
            "in lora.target_modules, or leave model.lora out"
        ) from error
    # peft keeps its settings in this attribute, and `save_adapter` reads them from there.
    model.peft_config = inside.peft_config  # type: ignore[assignment]
    for layer in adapter_layers(model).values():
        for part in (layer.lora_A, layer.lora_B):
            part.to(_wide(cast(Tensor, layer.base_layer.weight).dtype))
    log.info("lora: %s", describe_adapter(model))
    for name in heads:
        head: nn.Module = model.get_submodule(name).requires_grad_(True)
        dtype = next(head.parameters()).dtype
        if dtype != _wide(dtype):
            head.to(_wide(dtype)).register_forward_pre_hook(_to_own_dtype)
    return model


def describe_adapter(model: nn.Module) -> str:
    """Return a line for the log: how many layers of which names have an adapter, and which expert tensors have none."""
    kinds = Counter(name.split(".")[-1] for name in adapter_layers(model))
    said = "adapts " + ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    left_out = Counter(name.split(".")[-1] for name in experts(model))
    if left_out:
        said += "; experts stored as one tensor stay as they are: " + ", ".join(
            f"{count} {kind}" for kind, count in left_out.items()
        )
    return said


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of trained weights beside frozen ones of a given dtype: float32 at least."""
    return torch.promote_types(dtype, torch.float32)


def _to_own_dtype(head: nn.Module, inputs: tuple[object, ...]) -> tuple[object, ...]:
    """Forward pre-hook of a head: convert its inputs from the backbone's dtype to its own."""
    dtype = next(head.parameters()).dtype
    return tuple(value.to(dtype) if isinstance(value, Tensor) else value for value in inputs)


def adapter_layers(model: nn.Module) -> dict[str, LoraLinear]:
    """Return name → layer for the layers with an adapter; empty for a model without."""
    inside = f".lora_A.{ADAPTER}."
    names = dict.fromkeys(name.split(inside)[0] for name, _ in model.named_parameters() if inside in name)
    return {name: cast("LoraLinear", model.get_submodule(name)) for name in names}


def is_adapted(model: nn.Module) -> bool:
    """Return whether any layer of a model has a LoRA adapter."""
    return bool(adapter_layers(model))


def is_adapter_weight(name: str) -> bool:
    """Return whether a weight of this name is the A or the B of an adapter."""
    return f".lora_A.{ADAPTER}." in name or f".lora_B.{ADAPTER}." in name


@contextlib.contextmanager
def adapter_off(model: nn.Module) -> Iterator[None]:
    """Turn a model's adapters off inside this context: it then computes bit for bit what the base model computes.

    Do not train inside it.
    """
    layers = list(adapter_layers(model).values())
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def merge(weight: Tensor, a: Tensor, b: Tensor, scaling: float, transposed: bool) -> Tensor:
    """Return W + s B A, computed in at least float32 and rounded once to W's dtype.

    Args:
        weight: W, (out, in); (in, out) if `transposed`.
        a, b: (r, in) and (out, r).
        scaling: s.
        transposed: whether W is stored transposed, as in GPT-2.
    """
    dtype = _wide(weight.dtype)
    # Sampling runs under autocast, which would multiply in half precision.
    with torch.autocast(weight.device.type, enabled=False):
        addition = scaling * (b.to(dtype) @ a.to(dtype))
    return (weight.to(dtype) + (addition.T if transposed else addition)).to(weight.dtype)

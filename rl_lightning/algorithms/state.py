"""What a checkpoint holds of a module, and whether it fits one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import cast

from torch import nn

from rl_lightning.errors import UserError
from rl_lightning.models import LoraOptions
from rl_lightning.models.adapters import is_adapter_weight
from rl_lightning.models.quantized import quantized_layers

#: How Lightning counts something: in this epoch or in all (`current`, `total`) → how far it has come (`ready` to `completed`).
Counts = dict[str, dict[str, int]]


def left_out(module: nn.Module) -> set[str]:
    """Return the names of what a checkpoint does without: frozen parameters, and all of a model that trains nothing."""
    frozen = {name for name, value in module.named_parameters(remove_duplicate=False) if not value.requires_grad}
    for prefix, child in module.named_children():
        parameters = list(child.parameters())
        if parameters and not any(value.requires_grad for value in parameters):
            frozen |= {f"{prefix}.{name}" for name, _ in child.named_buffers(remove_duplicate=False)}
    # Beside its weight a quantised layer keeps scales, under names of their own.
    for name, layer in quantized_layers(module):
        frozen |= {f"{name}.{key}" for key in layer.state_dict()}
    return frozen


def begin_step_anew(checkpoint: Mapping[str, object], data: type) -> None:
    """Let a checkpoint from between two microbatches of an optimizer step go on with the first of them.

    The gradients of those before it are in no checkpoint, so Lightning, which would go on behind them, would take a step of what is
    left. `ModelCheckpoint` saves there if its interval of time ends, or just after a run has gone on.

    Args:
        checkpoint: that Lightning is about to save.
        data: the class of the run's DataModule, whose position is the beginning of the step.
    """
    served = cast("Mapping[str, object]", checkpoint.get(data.__qualname__, {}))
    if not served.get("ranks"):  # not within an epoch
        return
    loop = cast("Mapping[str, Mapping[str, Mapping[str, object]]]", checkpoint["loops"])["fit_loop"]
    batches = cast("Counts", loop["epoch_loop.batch_progress"])
    position = cast(int, served["position"])
    ahead = batches["current"]["ready"] - position
    if ahead <= 0:
        return
    completed = batches["total"]["ready"] - ahead
    for counts, number in ((batches["current"], position), (batches["total"], completed)):
        counts.update(dict.fromkeys(("ready", "started", "processed", "completed"), number))
    optimizer = loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]
    for counts in cast("Mapping[str, Counts]", optimizer)["zero_grad"].values():
        counts.update({name: number - 1 for name, number in counts.items()})


def check_adapter(saved: Mapping[str, object] | None, lora: LoraOptions | None) -> None:
    """Refuse a checkpoint of another adapter than a run has.

    Args:
        saved: the settings of the checkpoint's adapter; None for weights trained in full.
        lora: the run's.

    Raises:
        UserError: saying which option would have to be what.
    """
    own = None if lora is None else asdict(lora)
    if saved == own:
        return
    if saved is None:
        raise UserError(
            "the checkpoint holds all weights and this run trains an adapter: leave model.lora out, or export the checkpoint with "
            "HFExport and name the result as model.policy"
        )
    differ = {name: value for name, value in saved.items() if own is None or own[name] != value}
    options = " ".join(f"--model.lora.{name}={value}" for name, value in differ.items())
    what = "trains all weights" if own is None else "has another one"
    raise UserError(f"the checkpoint holds a LoRA adapter and this run {what}: add {options}")


def check_kind(module: nn.Module, state: Mapping[str, object]) -> None:
    """Refuse a state that has an adapter where the module has none, or the other way round.

    Raises:
        UserError: in one line, where the names of all weights would not fit.
    """
    saved = any(is_adapter_weight(name) for name in state)
    own = any(is_adapter_weight(name) for name, _ in module.named_parameters())
    if saved and not own:
        raise UserError("the checkpoint holds a LoRA adapter and this module trains all weights: set its option lora")
    if own and not saved:
        raise UserError(
            "the checkpoint holds all weights and this module trains a LoRA adapter: leave its option lora out"
        )

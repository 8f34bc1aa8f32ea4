"""The run card: formula, sizes, memory and devices of a run, printed before it starts."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from rl_lightning.models.memory import held, in_units


class RunCard(Callback):
    """Print the run card at the start of `fit`, on rank 0."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the card; at this point all models are loaded."""
        if trainer.is_global_zero:
            print(run_card(trainer, pl_module))


def run_card(trainer: Trainer, module: Any) -> str:
    """Return the card's lines: algorithm, policy, adapter, the DataModule's own lines, estimator, optimizer, memory, devices."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    facts = {
        "algorithm": f"{type(module).__name__}   {module.formula}",
        "policy": f"{module.policy_files.policy}, {_parameters(held(module)[0].parameters)} parameters, {module.policy_files.options.dtype}",
        "adapter": _adapter(module),
        **data.describe(),
        "estimator": getattr(module, "estimator", None),
        "optimizer": f"{trainer.estimated_stepping_batches:,} steps, lr {module.optimizer_options.lr:g} "
        f"({module.optimizer_options.schedule}), reduction {module.reduction}, "
        f"clip {trainer.gradient_clip_val or 'off'}",
        "memory": _memory(module),
        "devices": f"{trainer.world_size} × {trainer.strategy.root_device.type}, precision {trainer.precision}",
        "output": str(trainer.default_root_dir),
    }
    width = max(len(name) for name in facts)
    lines = [f"  {name:<{width}}  {text}" for name, text in facts.items() if text]
    return "\n".join(["rl_lightning", *lines])


def _parameters(count: int) -> str:
    """Return a number of parameters with a unit: k, M or B."""
    return in_units(count, "").rstrip().replace("G", "B")


def _adapter(module: Any) -> str | None:
    if module.lora is None:
        return None
    trained = _parameters(sum(model.trained for model in held(module)))
    return f"LoRA, {module.lora}; {trained} parameters are trained in all; {module.adapter_says}"


def _memory(module: Any) -> str:
    models = held(module)
    parts = [f"{model.name} {in_units(model.total)}" for model in models]
    each = " on each device" if module.trainer.world_size > 1 else ""
    return f"{in_units(sum(model.total for model in models))} of weights, gradients and optimizer{each}: {', '.join(parts)}"

"""What a run is about to do, in a few lines, before it does it."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class RunCard(Callback):
    """Print the run card at the start of `fit`: formula, sizes, steps, parameters."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print it, once, from rank 0."""
        if trainer.is_global_zero:
            print(run_card(trainer, pl_module))


def run_card(trainer: Trainer, module: Any) -> str:
    """Return the run card."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    facts = {
        "algorithm": f"{type(module).__name__}   {module.formula}",
        "policy": f"{module.policy_files.policy}, {_parameters(module)} parameters, {module.policy_files.options.dtype}",
        **data.describe(),
        "estimator": getattr(module, "estimator", None),
        "optimizer": f"{trainer.estimated_stepping_batches:,} steps, lr {module.optimizer_options.lr:g} "
        f"({module.optimizer_options.schedule}), reduction {module.reduction}, "
        f"clip {trainer.gradient_clip_val or 'off'}",
        "devices": f"{trainer.world_size} × {trainer.strategy.root_device.type}, precision {trainer.precision}",
        "output": str(trainer.default_root_dir),
    }
    width = max(len(name) for name in facts)
    lines = [f"  {name:<{width}}  {text}" for name, text in facts.items() if text]
    return "\n".join(["rl_lightning", *lines])


def _parameters(module: Any) -> str:
    count = sum(parameter.numel() for parameter in module.policy.parameters())
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        # From here on three digits round up to the unit.
        if count >= 0.9995 * size:
            return f"{count / size:.3g} {unit}"
    return str(count)

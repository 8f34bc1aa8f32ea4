"""AdamW and its learning rate over time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch.optim.optimizer import ParamsT

from rl_lightning.errors import UserError
from rl_lightning.typed import Typed


@dataclass
class OptimizerOptions(metaclass=Typed):
    """AdamW and its learning rate over time.

    Args:
        lr: peak learning rate.
        betas: decay rates of the two moments.
        weight_decay: decoupled, on every parameter.
        warmup_steps: optimizer steps over which the rate rises linearly from 0.
        schedule: what follows: `constant`, or `linear` or `cosine` down to 0 at the last step of the run.
        moments: `full` for numbers as wide as the weights; `8bit` for a byte each, with a scale for each 256 of them, by bitsandbytes: 2 bytes
            a weight instead of 8. Tensors of fewer than 4,096 numbers keep full ones.
    """

    lr: float = 1e-6
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    warmup_steps: int = 0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    moments: Literal["full", "8bit"] = "full"

    def __post_init__(self) -> None:
        """Refuse what AdamW would refuse later, or accept in silence."""
        for name in ("lr", "weight_decay", "warmup_steps"):
            if getattr(self, name) < 0:
                raise UserError(f"optimizer.{name} must be at least 0, not {getattr(self, name)}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"optimizer.betas must lie in [0, 1), not {list(self.betas)}")


def adamw(options: OptimizerOptions, groups: ParamsT, trainer: Trainer) -> torch.optim.Optimizer:
    """Return AdamW.

    Args:
        options: its settings.
        groups: its parameter groups.
        trainer: says how parameters are divided, and in what precision gradients are.

    Raises:
        UserError: for moments of 8 bits, if bitsandbytes is not installed or a strategy shards the parameters.
    """
    lr, betas, decay = options.lr, options.betas, options.weight_decay
    if options.moments == "full":
        # Lightning's mixed precision refuses to clip the gradients of fused optimizers.
        fused = not isinstance(trainer.precision_plugin, MixedPrecision)
        return torch.optim.AdamW(groups, lr=lr, betas=betas, weight_decay=decay, fused=fused)
    if isinstance(trainer.strategy, FSDPStrategy | ModelParallelStrategy):
        raise UserError(
            "optimizer.moments: 8bit has no kernels for sharded parameters: leave it out under FSDP, which divides the moments anyway"
        )
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise UserError("optimizer.moments: 8bit needs bitsandbytes: pip install 'rl_lightning[bnb]'") from error
    optimizer: torch.optim.Optimizer = AdamW8bit(groups, lr=lr, betas=betas, weight_decay=decay)
    return optimizer


def learning_rate_factor(options: OptimizerOptions, step: int, total: int) -> float:
    """Return the share of the peak learning rate at an optimizer step, counted from 0."""
    if step < options.warmup_steps:
        return (step + 1) / (options.warmup_steps + 1)
    if options.schedule == "constant":
        return 1.0
    progress = min(1.0, (step - options.warmup_steps) / max(1, total - options.warmup_steps))
    if options.schedule == "linear":
        return 1.0 - progress
    return 0.5 * (1.0 + float(torch.cos(torch.tensor(progress * torch.pi))))

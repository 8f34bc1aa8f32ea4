"""Precisions of weights and of a trainer that do not go together."""

from __future__ import annotations

import logging

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.precision import FSDPPrecision
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn

from rl_lightning.errors import UserError

log = logging.getLogger(__name__)


def refuse_full_training(trainer: Trainer | None) -> None:
    """Refuse to train weights of 4 or 8 bits in a run that trains; to sample with them is fine."""
    if trainer is not None and trainer.state.fn == TrainerFn.FITTING:
        raise UserError(
            "weights in 4 or 8 bits stay as they are, so nothing of them can be trained: add an adapter (--model.lora.rank=16), or "
            "load the policy without load.quantize"
        )


def check_quantized(trainer: Trainer) -> None:
    """Refuse quantised weights where they cannot be.

    Raises:
        UserError: under a strategy that shards, and in pure half precision.
    """
    if isinstance(trainer.strategy, FSDPStrategy | ModelParallelStrategy):
        raise UserError(
            "weights in 4 or 8 bits are not divided over ranks: use one device or --config trainer/ddp, or leave load.quantize out"
        )
    if str(trainer.precision).endswith("16-true"):
        raise UserError(
            f"precision {trainer.precision} would round the adapter: with load.quantize use model.load.dtype: bfloat16 and "
            "trainer.precision: bf16-mixed"
        )


def check_adapter_precision(trainer: Trainer, dtype: torch.dtype) -> None:
    """Warn, or refuse, where a float32 adapter cannot stand beside weights of another precision.

    Raises:
        UserError: under `FSDPStrategy`, which makes one flat tensor of both.
    """
    if str(trainer.precision).endswith("16-true"):
        log.warning(
            "precision %s rounds the adapter too, so small updates to it are lost: use model.load.dtype: bfloat16 with "
            "trainer.precision: bf16-mixed",
            trainer.precision,
        )
    flat = isinstance(trainer.precision_plugin, FSDPPrecision) and str(trainer.precision).endswith("mixed")
    if flat and dtype in (torch.bfloat16, torch.float16):
        raise UserError(
            "FSDPStrategy cannot shard a float32 adapter together with half-precision weights: set model.load.dtype to float32, "
            "or trainer.strategy to rl_lightning.strategies.FSDP2Strategy"
        )


def warn_of_rounding(trainer: Trainer | None, dtype: torch.dtype) -> None:
    """Warn where all weights are trained in half precision, in a run that trains."""
    if trainer is None or trainer.state.fn != TrainerFn.FITTING:
        return
    if dtype in (torch.bfloat16, torch.float16) or str(trainer.precision).endswith("16-true"):
        log.warning(
            "weights in half precision are trained without a copy in float32, so small updates to them are lost: use "
            "model.load.dtype: float32 with trainer.precision: bf16-mixed, or an adapter (model.lora)"
        )

"""Where the time of a rollout goes, and how far from the machine's limits it is spent."""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from transformers import PreTrainedModel

from rl_lightning.errors import UserError
from rl_lightning.hooks import RolloutCallback
from rl_lightning.models.roofline import Limits, Tokens, Work, measured_limits
from rl_lightning.types import Microbatch, Rollout


class Speed(RolloutCallback):
    """Log seconds, tokens per second, and shares of the roofline, once an epoch.

    - `time/train_s`: forward and backward passes and optimizer steps of a rollout. `time/generate_s`, `time/reward_s` (waited
      for after the last response) and `time/score_s` come with the rollout.
    - `speed/tokens_per_s`: response tokens of all ranks, over the whole round. `speed/generate_tokens_per_s` and
      `speed/train_tokens_per_s`: of one rank, in these two parts; the latter counts the tokens that are trained on, no
      padding, and a prompt once for its responses.
    - `speed/generate_roofline` and `speed/train_roofline`: the least time that this work could take on this device over
      the time that it took; see `rl_lightning.models.roofline`. Sampling counts decoding steps against all of
      `time/generate_s`; generators that do not tell their steps have no share, and neither have models with layers other
      than plain causal attention. What fits into a CPU's cache is read faster than memory is: then a share may be above 1.

    Args:
        peak_flops: floating-point operations a second of one device; measured with a product of matrices if null.
        bandwidth: bytes a second that one device reads from its memory; measured if null.
    """

    def __init__(self, peak_flops: float | None = None, bandwidth: float | None = None) -> None:
        for name, value in (("peak_flops", peak_flops), ("bandwidth", bandwidth)):
            if value is not None and value <= 0:
                raise UserError(f"Speed.{name} must be above 0, or null to measure it, not {value}")
        self.peak_flops = peak_flops
        self.bandwidth = bandwidth
        self._started = 0.0
        self._sampled = 0.0
        self._trained = 0.0
        self._rollout: Rollout | None = None
        self._tokens = Tokens()
        self._limits: Limits | None = None
        self._work: list[Work] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the limits, while memory is free, and what passes through the models need."""
        work = [Work.of(model) for model in _trained_models(pl_module)]
        self._work = [one for one in work if one is not None]
        self._limits = self._find_limits(trainer, pl_module) if len(self._work) == len(work) else None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._started = self._sampled = self._trained = time.perf_counter()
        self._rollout, self._tokens = None, Tokens()

    def on_rollout_end(self, trainer: Trainer, module: LightningModule, rollout: Rollout) -> None:
        """Take the split time."""
        self._sampled = time.perf_counter()
        self._rollout = rollout

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: Microbatch, batch_idx: int
    ) -> None:
        """Take the time; what comes after the last batch, such as validation, is not training."""
        self._tokens.add(batch)
        self._trained = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log, unless the epoch was gone on with in its middle."""
        seconds = self._trained - self._sampled
        if seconds <= 0:
            return
        limits = self._limits
        pl_module.log("speed/train_tokens_per_s", self._tokens.read / seconds)
        if limits is not None:
            flops = sum(one.training(self._tokens) for one in self._work)
            pl_module.log("speed/train_roofline", limits.least_seconds(flops, 0) / seconds)
        rollout = self._rollout
        if rollout is None:
            return
        tokens, found, ranks = int(rollout.lengths.sum()), rollout.metrics, trainer.world_size
        pl_module.log("time/train_s", seconds)
        pl_module.log("speed/tokens_per_s", ranks * tokens / (self._trained - self._started))
        if found.get("time/generate_s"):
            pl_module.log("speed/generate_tokens_per_s", found["generation/tokens"] / ranks / found["time/generate_s"])
        if limits is not None and found.get("generation/steps"):
            counts = (found[f"generation/{name}"] / ranks for name in ("steps", "rows", "seen"))
            share = limits.least_seconds(*self._work[0].decoding(*counts)) / found["time/generate_s"]
            pl_module.log("speed/generate_roofline", share)

    def _find_limits(self, trainer: Trainer, module: LightningModule) -> Limits:
        if self.peak_flops is not None and self.bandwidth is not None:
            return Limits(self.peak_flops, self.bandwidth)
        half = {"bf16": torch.bfloat16, "16-m": torch.float16, "16-t": torch.float16}
        dtype = half.get(str(trainer.precision)[:4], next(module.parameters()).dtype)
        found = measured_limits(module.device, dtype)
        return Limits(self.peak_flops or found.flops, self.bandwidth or found.bandwidth)


def _trained_models(module: LightningModule) -> list[PreTrainedModel]:
    """Return the models that training goes through, the policy first; a critic without its value head."""
    children: list[Any] = [child for name, child in module.named_children() if name != "reference"]
    models = [getattr(child, "backbone", child) for child in children]
    return [model for model in models if isinstance(model, PreTrainedModel)]

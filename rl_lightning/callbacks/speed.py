"""Timing of rollouts: seconds, tokens per second, and shares of the roofline."""

from __future__ import annotations

import time

import torch
from lightning.pytorch import LightningModule, Trainer
from transformers import PreTrainedModel

from rl_lightning.errors import UserError
from rl_lightning.hooks import RolloutCallback
from rl_lightning.models.roofline import Limits, Tokens, Work, measured_limits
from rl_lightning.travel import host_number
from rl_lightning.types import Microbatch, Rollout


class Speed(RolloutCallback):
    """Log seconds, tokens per second, and shares of the roofline, once per epoch.

    - `time/train_s`: seconds of forward passes, backward passes and optimizer steps of a rollout. `time/generate_s`,
      `time/reward_s` (waiting after the last response) and `time/score_s` come with the rollout.
    - `speed/tokens_per_s`: response tokens of all ranks per second of the whole epoch.
    - `speed/generate_tokens_per_s`: response tokens of one rank per second of sampling.
    - `speed/train_tokens_per_s`: tokens of one rank per second of training, without padding, each prompt once for its responses.
    - `speed/generate_roofline`, `speed/train_roofline`: the least time that this work could take on this device, divided by the
      time that it took; see `rl_lightning.models.roofline`. Not logged for generators that do not count their decoding steps,
      and for models with layers other than plain causal attention. It may be above 1 for a model that fits into a CPU's cache,
      which is faster than memory.

    Args:
        peak_flops: floating-point operations per second of one device; measured with a linear layer if null.
        bandwidth: bytes per second that one device reads from memory; measured if null.

    Raises:
        UserError: for a value of 0 or less.
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
        """Measure the device's limits, while most of its memory is free, and count the work of the trained models."""
        mixed = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(str(trainer.precision))
        work = [Work.of(model, computed=mixed) for model in _trained_models(pl_module)]
        self._work = [one for one in work if one is not None]
        self._limits = self._find_limits(trainer, pl_module) if len(self._work) == len(work) else None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of an epoch, and forget the last rollout's tokens."""
        self._started = self._sampled = self._trained = time.perf_counter()
        self._rollout, self._tokens = None, Tokens()

    def on_rollout_end(self, trainer: Trainer, module: LightningModule, rollout: Rollout) -> None:
        """Note the time at which the rollout is complete and training on it begins."""
        self._sampled = time.perf_counter()
        self._rollout = rollout

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: Microbatch, batch_idx: int
    ) -> None:
        """Count the microbatch's tokens and note the time, so that what follows the last one, such as validation, is left out."""
        self._tokens.add(batch)
        self._trained = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the epoch's times and speeds; those of sampling only if the rollout was sampled in this process."""
        seconds = self._trained - self._sampled
        if seconds <= 0:
            return
        found = self._of_training(seconds) | self._of_rollout(seconds, trainer.world_size)
        for name, value in found.items():
            pl_module.log(name, host_number(value))

    def _of_training(self, seconds: float) -> dict[str, float]:
        found = {"speed/train_tokens_per_s": self._tokens.read / seconds}
        if self._limits is not None:
            flops = sum(one.training(self._tokens) for one in self._work)
            found["speed/train_roofline"] = self._limits.least_seconds(flops, 0) / seconds
        return found

    def _of_rollout(self, seconds: float, ranks: int) -> dict[str, float]:
        rollout, limits = self._rollout, self._limits
        if rollout is None:
            return {}
        tokens, found = int(rollout.policy_lengths.sum()), rollout.metrics
        seen = {"time/train_s": seconds, "speed/tokens_per_s": ranks * tokens / (self._trained - self._started)}
        if found.get("time/generate_s"):
            seen["speed/generate_tokens_per_s"] = found["work/tokens"] / ranks / found["time/generate_s"]
        if limits is not None and found.get("work/steps"):
            counts = (found[f"work/{name}"] / ranks for name in ("steps", "rows", "seen"))
            share = limits.least_seconds(*self._work[0].decoding(*counts)) / found["time/generate_s"]
            seen["speed/generate_roofline"] = share
        return seen

    def _find_limits(self, trainer: Trainer, module: LightningModule) -> Limits:
        if self.peak_flops is not None and self.bandwidth is not None:
            return Limits(self.peak_flops, self.bandwidth)
        half = {"bf16": torch.bfloat16, "16-m": torch.float16, "16-t": torch.float16}
        dtype = half.get(str(trainer.precision)[:4], next(module.parameters()).dtype)
        found = measured_limits(module.device, dtype)
        return Limits(self.peak_flops or found.flops, self.bandwidth or found.bandwidth)


def _trained_models(module: LightningModule) -> list[PreTrainedModel]:
    """Return the trained models of a module, the policy first; of a critic its backbone."""
    children = [child for name, child in module.named_children() if name != "reference"]
    models = [getattr(child, "backbone", child) for child in children]
    return [model for model in models if isinstance(model, PreTrainedModel)]

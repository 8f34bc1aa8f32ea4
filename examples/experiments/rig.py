"""What experiments share: paired runs of the library, and what is read off them."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

import rl_lightning as rl
from rl_lightning.types import Rollout

SEEDS = range(5)
#: Of all online runs, unless an arm says otherwise.
MODEL: dict[str, Any] = {"policy": "embedded", "kl_coef": 0.0, "optimizer": {"lr": 3e-4, "warmup_steps": 5}}
DATA: dict[str, Any] = {
    "prompts_per_rollout": 8,
    "group_size": 8,
    "sampling": {"max_new_tokens": 40},
    "evaluation": {"samples_per_prompt": 8, "max_prompts": 64},
}
ROLLOUTS = 40


@dataclass(frozen=True)
class Arm:
    """A way to train.

    Args:
        algorithm: of `rl_lightning`.
        model, data: options that differ from `MODEL` and `DATA`.
        callbacks: makes those beside the default ones.
        rollouts: how many.
    """

    algorithm: str = "GRPO"
    model: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    callbacks: Callable[[], list[Callback]] = lambda: [rl.GroupNormalize()]
    rollouts: int = ROLLOUTS


class Logged(rl.RolloutCallback):
    """Keeps what is logged, an entry a step, and the length of wrong answers, an entry a rollout."""

    def __init__(self) -> None:
        self.steps: dict[str, list[float]] = defaultdict(list)

    def on_rollout_end(self, trainer: Trainer, module: LightningModule, rollout: Rollout) -> None:
        """Keep the mean length of wrong answers."""
        self.steps["wrong length"].append(float(rollout.lengths[~rollout.correct].float().mean()))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        """Keep the metrics of a step."""
        for name, value in trainer.callback_metrics.items():
            self.steps[name].append(float(value))


def trainer(place: Path, seed: int, callbacks: Sequence[Callback], **settings: Any) -> rl.Trainer:
    """Return a Trainer that logs nothing and keeps no checkpoint."""
    return rl.Trainer(
        seed=seed,
        default_root_dir=place,
        callbacks=list(callbacks),
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        limit_val_batches=0,
        **settings,
    )


def run(arm: Arm, seed: int, place: Path) -> dict[str, list[float]]:
    """Train an arm, and return name → what was logged; `test/…` has one entry."""
    logged = Logged()
    module = getattr(rl, arm.algorithm)(**{**MODEL, **arm.model})
    data = rl.RolloutDataModule(**{**DATA, **arm.data}, seed=seed)
    run = trainer(place, seed, [*arm.callbacks(), logged], max_epochs=arm.rollouts, gradient_clip_val=1.0)
    run.fit(module, data)
    return dict(logged.steps) | tested(run, module, data)


def tested(run: rl.Trainer, module: LightningModule, data: object) -> dict[str, list[float]]:
    """Return the test metrics, one entry each."""
    parts = run.test(module, data, verbose=False)  # type: ignore[arg-type]
    found = {name: value for part in parts for name, value in part.items()}  # of pairs, and of responses
    return {name: [float(value)] for name, value in found.items()}


def last(values: Sequence[float], share: float) -> float:
    """Return the mean of the last share of values, without those that are no number."""
    tail = values[-max(1, round(len(values) * share)) :]
    return statistics.fmean(value for value in tail if not math.isnan(value))


@dataclass(frozen=True)
class Paired:
    """Differences between two arms, a seed each.

    Args:
        differences: one arm less the other.
    """

    differences: Sequence[float]

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return statistics.fmean(self.differences)

    @property
    def error(self) -> float:
        """Standard error over seeds."""
        return statistics.stdev(self.differences) / len(self.differences) ** 0.5

    @property
    def clear(self) -> bool:
        """Whether the mean is above 0 by more than two standard errors."""
        return self.mean > 2 * self.error

    @property
    def above(self) -> int:
        """In how many seeds it is above 0."""
        return sum(value > 0 for value in self.differences)

    def __str__(self) -> str:
        return f"{self.mean:+.3g} ± {self.error:.2g} ({self.above} of {len(self.differences)} above 0)"


def paired(one: Sequence[float], other: Sequence[float]) -> Paired:
    """Return the differences of two arms, seed by seed."""
    return Paired([left - right for left, right in zip(one, other, strict=True)])

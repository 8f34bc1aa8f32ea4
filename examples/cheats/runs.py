"""A run on a reward that can be had without the work, and what the audit and the watch said of it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

import rl_lightning as rl
from examples.cheats.cases import CASES, Case
from examples.overoptimization.store import kept
from rl_lightning.callbacks import HeldOutDivergence, RewardWatch

#: Rollouts between two validations.
LOOK = 2
#: Problems of a validation, and answers to each.
_PROBLEMS, _ANSWERS = 32, 8
#: Demonstrations that a policy imitates first, in two passes, where a case has any.
_IMITATED = 10_000


@dataclass
class Found:
    """What came of a run.

    Args:
        audit: the verdict on what is trained, before the run; empty for the cured reward.
        looks: name → one number a validation.
        said: (rollout, what the watch said).
        samples: a problem, and the first answer to it in the first and in the last validation.
    """

    audit: str = ""
    looks: dict[str, list[float]] = field(default_factory=dict)
    said: list[tuple[int, str]] = field(default_factory=list)
    samples: list[tuple[str, str]] = field(default_factory=list)


class Looks(Callback):
    """Keeps every validation: its numbers, and the first answer.

    Args:
        found: where they go.
    """

    def __init__(self, found: Found) -> None:
        self.found = found

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: Any, batch_idx: int, *_: object
    ) -> None:
        """Keep the first answer."""
        if batch_idx == 0:
            self.found.samples = [*self.found.samples[:1], (batch.prompts[0], batch.responses[0])]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the numbers."""
        names = {
            "val/reward_mean": "reward",
            "val/reward/verifier": "verifier",
            "val/kl": "kl",
            "val/length_mean": "length",
        }
        for name, short in names.items():
            self.found.looks.setdefault(short, []).append(float(trainer.callback_metrics[name]))


class Ear(logging.Handler):
    """Hears what the watch says.

    Args:
        found: where it goes.
    """

    def __init__(self, found: Found) -> None:
        super().__init__()
        self.found = found

    def emit(self, record: logging.LogRecord) -> None:
        """Note the rollout at which it was said."""
        self.found.said.append((LOOK * (len(self.found.looks["reward"]) - 1), record.getMessage()))


def train(case: Case, cured: bool, rollouts: int, place: Path) -> Found:
    """Audit a reward and train on it."""
    found = Found()

    def data() -> rl.RolloutDataModule:
        return rl.RolloutDataModule(
            prompts=case.prompts(cured),
            rewards=[
                {"function": case.verifier, "name": "verifier", "weight": 0.0},
                {"function": case.cure if cured else case.reward, "name": "reward", "weight": 1.0},
            ],
            sampling={"max_new_tokens": 40},
            prompts_per_rollout=16,
            evaluation={"samples_per_prompt": _ANSWERS, "max_prompts": _PROBLEMS},
            seed=0,
        )

    def run(*callbacks: Callback, **settings: Any) -> rl.Trainer:
        quiet = {"logger": False, "enable_progress_bar": False, "accelerator": "cpu", "devices": 1}
        return rl.Trainer(seed=0, default_root_dir=place, callbacks=list(callbacks), **quiet, **settings)

    policy = _with_habits(case, place.with_name(f"{place.name}-start"), run)
    if not cured:
        (verdict,) = (one for one in run().audit(rl.GRPO(policy=policy), data()) if one.trained)
        found.audit = f"{verdict.text} ({verdict.change:+.3f} ± {verdict.error:.3f})"
    ear = Ear(found)
    heard = logging.getLogger("rl_lightning.callbacks.reward_watch")
    heard.addHandler(ear)
    # The watch comes after what keeps the numbers that it looked at.
    callbacks = [rl.GroupNormalize(), HeldOutDivergence(), Looks(found), RewardWatch("verifier", kl_budget=5.0)]
    module = rl.GRPO(policy=policy, kl_coef=0.0, optimizer={"lr": 3e-4, "warmup_steps": 5})
    run(*callbacks, max_epochs=rollouts, check_val_every_n_epoch=LOOK, gradient_clip_val=1.0).fit(module, data())
    heard.removeHandler(ear)
    return found


def _with_habits(case: Case, place: Path, run: Callable[..., rl.Trainer]) -> str:
    """Return the policy that a run begins with: the embedded one, after it has imitated the demonstrations of the case, if there are any."""
    if case.habits is None:
        return "embedded"
    data = rl.DemonstrationDataModule(prompts=case.habits(train_size=_IMITATED), batch_size=64)
    module = rl.SFT(optimizer={"lr": 1e-3, "warmup_steps": 20, "schedule": "cosine"})
    run(rl.HFExport(str(place)), max_epochs=2, gradient_clip_val=1.0, limit_val_batches=0).fit(module, data)
    return str(place)


def place_of(directory: Path, case: Case, cured: bool, rollouts: int) -> Path:
    """Return the file of what came of a run of so many rollouts."""
    return directory / f"{case.name.replace(' ', '_')}{'-cured' if cured else ''}-{rollouts}.pt"


def work(directory: Path, name: str, cured: bool, rollouts: int) -> None:
    """Do a run."""
    (case,) = (one for one in CASES if one.name == name)
    path = place_of(directory, case, cured, rollouts)
    kept(path, lambda: train(case, cured, rollouts, path.with_suffix("")))

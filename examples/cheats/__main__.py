"""Train on five rewards that can be had without the work, and say what the audit and the watch said of each, and when.

Usage: python -m examples.cheats [--only length] [--rollouts 60] [--directory runs/cheats] [--picture docs/pictures/cheats.png]

For each reward: an audit, a run with `RewardWatch`, and the same run on the cured reward. What is done is not done again. Needs matplotlib:
pip install -e '.[plots]'
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

import rl_lightning as rl
from examples.cheats.cases import CASES, Case
from examples.overoptimization.jobs import side_by_side
from examples.overoptimization.report import markdown
from examples.overoptimization.store import kept
from rl_lightning.callbacks import HeldOutDivergence, RewardWatch

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).parents[2]
#: Rollouts between two validations.
_LOOK = 2
#: Problems of a validation, and answers to each.
_PROBLEMS, _ANSWERS = 32, 8


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
        self.found.said.append((_LOOK * (len(self.found.looks["reward"]) - 1), record.getMessage()))


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

    if not cured:
        (verdict,) = (one for one in run().audit(rl.GRPO(), data()) if one.trained)
        found.audit = f"{verdict.text} ({verdict.change:+.3f} ± {verdict.error:.3f})"
    ear = Ear(found)
    heard = logging.getLogger("rl_lightning.callbacks.reward_watch")
    heard.addHandler(ear)
    # The watch comes after what keeps the numbers that it looked at.
    callbacks = [rl.GroupNormalize(), HeldOutDivergence(), Looks(found), RewardWatch("verifier", kl_budget=5.0)]
    module = rl.GRPO(kl_coef=0.0, optimizer={"lr": 3e-4, "warmup_steps": 5})
    run(*callbacks, max_epochs=rollouts, check_val_every_n_epoch=_LOOK, gradient_clip_val=1.0).fit(module, data())
    heard.removeHandler(ear)
    return found


def place_of(directory: Path, case: Case, cured: bool) -> Path:
    """Return the file of what came of a run."""
    return directory / f"{case.name.replace(' ', '_')}{'-cured' if cured else ''}.pt"


def work(directory: Path, name: str, cured: bool, rollouts: int) -> None:
    """Do a run."""
    (case,) = (one for one in CASES if one.name == name)
    path = place_of(directory, case, cured)
    kept(path, lambda: train(case, cured, rollouts, path.with_suffix("")))


def table(directory: Path, cases: list[Case]) -> str:
    """Return a line a cheat."""
    heads = [
        "cheat",
        "meant",
        "pays for",
        "audit before the run",
        "`RewardWatch`, at rollout",
        "verifier",
        "reward",
        "then it answers",
        "cured: verifier",
    ]
    lines = []
    for case in cases:
        sick, well = (torch.load(place_of(directory, case, cured), weights_only=False) for cured in (False, True))
        said = "; ".join(f"{at}: {_kind(text)}" for at, text in sick.said)
        verifier, reward, cured = sick.looks["verifier"], sick.looks["reward"], well.looks["verifier"]
        prompt, answer = sick.samples[-1]
        lines.append(
            [
                case.name,
                case.meant,
                case.hole,
                sick.audit,
                said or "nothing",
                f"{verifier[0]:.2f}, best {max(verifier):.2f}, end {verifier[-1]:.2f}",
                f"{reward[0]:.2f} → {reward[-1]:.2f}",
                f"`{prompt}` → `{answer}`",
                f"{cured[0]:.2f} → {cured[-1]:.2f}" + (f" (watch: {len(well.said)})" if well.said else ""),
            ]
        )
    return markdown(heads, lines)


def _kind(text: str) -> str:
    return (
        "the verifier falls"
        if "the verifier" in text
        else "beyond the budget of 5 nats"
        if "divergence" in text
        else text
    )


def draw(directory: Path, cases: list[Case], output: Path) -> None:
    """Draw reward and verifier of every cheat, and the verifier of its cure."""
    figure, axes = plt.subplots(1, len(cases), figsize=(3.2 * len(cases), 2.9), squeeze=False)
    for axis, case in zip(axes.flat, cases, strict=True):
        sick, well = (torch.load(place_of(directory, case, cured), weights_only=False) for cured in (False, True))
        at = [_LOOK * look for look in range(len(sick.looks["reward"]))]
        axis.plot(at, sick.looks["verifier"], color="tab:red", label="verifier")
        axis.plot(at, well.looks["verifier"], color="tab:green", label="verifier, cured")
        for rollout, text in sick.said:
            axis.axvline(rollout, color="black" if "the verifier" in text else "grey", linestyle="--", linewidth=1)
        twin = axis.twinx()
        twin.plot(at, sick.looks["reward"], color="tab:blue", linestyle=":", label="reward")
        axis.set_ylim(0, 1)
        axis.set_title(case.name, fontsize=10)
        axis.set_xlabel("rollout", fontsize=8)
        axis.tick_params(labelsize=7)
        twin.tick_params(labelsize=7, colors="tab:blue")
    axes.flat[0].legend(fontsize=7)
    figure.tight_layout()
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=80)
    plt.close(figure)


def main() -> None:
    """Do what is not done, then draw and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[case.name for case in CASES])
    parser.add_argument("--rollouts", type=int, default=60)
    parser.add_argument("--parallel", type=int, default=2, help="runs side by side")
    parser.add_argument("--directory", type=Path, default=Path("runs/cheats"))
    parser.add_argument("--picture", type=Path, help="default: picture.png in the directory")
    options = parser.parse_args()
    cases = [case for case in CASES if options.only is None or case.name in options.only]
    directory = options.directory.resolve()
    jobs = [(directory, case.name, cured, options.rollouts) for case in cases for cured in (False, True)]
    side_by_side(work, [jobs], options.parallel, "run")
    picture = options.picture or directory / "picture.png"
    draw(directory, cases, picture)
    text = table(directory, cases)
    (directory / "table.md").write_text(text + "\n")
    print(f"\n{text}\n\nsaved {picture} and {directory / 'table.md'}")


if __name__ == "__main__":
    main()

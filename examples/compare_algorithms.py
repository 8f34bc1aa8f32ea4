"""Train algorithms from one policy, on one task, with the same number of sampled answers, and draw their curves.

Usage: python -m examples.compare_algorithms [--quick] [--only gspo cispo recipe/luspo] [--updates 1 4] [--seeds 0 1 2]
       [--answers 25600] [--directory runs/compare]

Without `--only`, the six of the notebook; any shipped configuration or recipe can be named. With `--updates`, each algorithm that samples
while it trains has a run for each of these numbers of updates a rollout: with 1 it is on policy, with 4 three updates of four are not.

Every run is a subprocess. After an interruption the same command goes on. SFT samples nothing: it reads as many demonstrations as
the others sample answers; these are correct, and no other algorithm sees them. RFT and DPO sample all answers before they train;
their curves are stretched over the same axis. Distillation's teacher is what GRPO has trained with the same seed.

Needs matplotlib: pip install -e '.[plots]'
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from lightning.pytorch import LightningModule, Trainer
from omegaconf import OmegaConf
from tqdm.auto import tqdm

from examples.plot_runs import has, read
from rl_lightning import shipped
from rl_lightning.callbacks import RolloutCallback
from rl_lightning.types import Rollout

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).parents[1]
PANELS = {
    "val/reward_mean": "reward (its own)",
    "val/pass@1": "pass@1",
    "val/pass@8": "pass@8",
    "val/length_mean": "length, tokens",
    "val/entropy": "entropy, nats a token",
    "val/kl": "KL from the start, nats an answer",
}
SHOWN = ("pass@1", "pass@8", "reward_mean", "length_mean")
#: What algorithms do to their tokens, as they log it.
ACTED = {
    "policy/clip_fraction_low": "clipped low",
    "policy/clip_fraction_high": "clipped high",
    "cispo/bounded_fraction": "bounded",
    "sapo/gate_mean": "gate",
    "dppo/masked_fraction": "masked",
    "kto/z0": "z0",
}


class Budget(RolloutCallback):
    """Ends a run after a number of sampled answers.

    Args:
        answers: number of answers sampled in training, over all ranks, those of dropped groups included.
    """

    def __init__(self, answers: int) -> None:
        self.answers = answers

    def on_rollout_end(self, trainer: Trainer, module: LightningModule, rollout: Rollout) -> None:
        """Ask the trainer to stop once the number is reached; it trains on this rollout first."""
        if rollout.metrics["rollout/answers"] >= self.answers:
            trainer.should_stop = True


@dataclass
class Recipe:
    """One algorithm of the comparison.

    Args:
        name: of its directory.
        label: in picture and table.
        config: its YAML.
        overlay: a YAML on top of it, if there is one.
        extra: further arguments of the command line.
        own_reward: whether its reward is another function than the others'; its curve then has no common starting point.
        updates: a rollout is used for; as many as the YAML says if None.
    """

    name: str
    label: str
    config: str
    overlay: str | None = None
    extra: list[str] = field(default_factory=list)
    own_reward: bool = False
    updates: int | None = None

    @property
    def configs(self) -> list[str]:
        """The arguments that name its YAMLs."""
        return [f"--config={file}" for file in (self.config, self.overlay) if file]

    @property
    def settings(self) -> Any:
        """What its YAMLs say, the overlay last."""
        files = [OmegaConf.load(ROOT / file) for file in (self.config, self.overlay) if file]
        return OmegaConf.merge(*files)

    def with_updates(self, number: int) -> Recipe:
        """Return the same algorithm with a number of updates a rollout."""
        return replace(self, name=f"{self.name}-{number}", label=f"{self.label}, {number}", updates=number)

    def arguments(self, answers: int, points: int) -> list[str]:
        """Return the arguments for a number of sampled answers and a number of validations (points)."""
        data = self.settings.data.init_args
        if self.online:
            rows = data.prompts_per_rollout * data.group_size
            rollouts = answers // rows
            # Dynamic sampling may need several chunks per rollout: then the budget ends the run before max_epochs.
            size = [
                f"--trainer.max_epochs={rollouts}",
                f"--trainer.check_val_every_n_epoch={max(1, rollouts // points)}",
            ]
            if self.updates is not None:
                size.append(f"--data.minibatch_size={rows // self.updates}")
            budget = "examples.compare_algorithms.Budget"
            return [*size, f"--trainer.callbacks+={budget}", f"--trainer.callbacks.answers={answers}", *self.extra]
        epochs = self.settings.trainer.max_epochs
        steps = [f"--trainer.val_check_interval={epochs / points:g}"]
        if "group_size" in data:
            return [*steps, f"--data.max_prompts={answers // data.group_size}", *self.extra]
        return [*steps, f"--data.prompts.train_size={answers}", *self.extra]

    @property
    def online(self) -> bool:
        """Whether answers are sampled during training."""
        return bool(self.settings.data.class_path.endswith("RolloutDataModule"))


SIX = [
    Recipe("sft", "SFT on correct demonstrations", "configs/sft.yaml"),
    Recipe("rft", "RFT", "configs/rft.yaml"),
    Recipe("dpo", "DPO", "configs/dpo.yaml"),
    Recipe("ppo", "PPO", "configs/ppo.yaml"),
    Recipe("grpo", "GRPO", "configs/grpo.yaml"),
    Recipe("dapo", "DAPO", "configs/dapo.yaml", own_reward=True),
]


def named(name: str) -> Recipe:
    """Return an algorithm by the name of its configuration, or of a recipe, which its first line puts on one."""
    known = next((one for one in SIX if one.name == name), None)
    if known is not None:
        return known
    file = shipped.named(name).relative_to(ROOT).as_posix()
    title = (ROOT / file).read_text().splitlines()[0].removeprefix("# ")
    if name.startswith("recipe/"):
        base = title.split("--config ")[1].strip()
        return Recipe(name.replace("/", "-"), title.partition(" (")[0], f"configs/{base}.yaml", file)
    return Recipe(name, title.partition(" on ")[0], file)


@dataclass
class Settings:
    """Settings of the whole comparison, from the command line."""

    directory: Path
    answers: int
    points: int
    problems: int

    def run(self, arguments: list[str], log: Path) -> None:
        """Run a command of rl_lightning, with its output in a file; exit if it fails."""
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "rl_lightning", *arguments, "--trainer.enable_progress_bar=false"]
        with log.open("a") as file:
            done = subprocess.run(
                command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env={**os.environ}, check=False
            )
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\nfailed; its output is in {log}")

    def place(self, recipe: Recipe, seed: int) -> Path:
        """Return the directory of a run."""
        return (self.directory / recipe.name / f"seed-{seed}").resolve()

    def before(self) -> None:
        """Evaluate the policy that all runs start from."""
        place = (self.directory / "before").resolve()
        if not (place / "done").exists():
            for command in ("validate", "test"):
                self.run([command, "--config=configs/grpo.yaml", *self.common(place)], place / "log.txt")
            (place / "done").touch()

    def common(self, place: Path) -> list[str]:
        """Return the arguments of every command: directory, number of test problems, divergence from the start."""
        divergence = [
            "--trainer.callbacks+=rl_lightning.callbacks.HeldOutDivergence",
            "--trainer.callbacks.reference=embedded",
        ]
        return [f"--trainer.default_root_dir={place}", f"--data.evaluation.max_prompts={self.problems}", *divergence]

    def train(self, recipe: Recipe, seed: int) -> None:
        """Train and test one policy, or continue an interrupted run."""
        place = self.place(recipe, seed)
        if (place / "done").exists():
            return
        base = [*recipe.configs, f"--seed_everything={seed}", *self.common(place)]
        if "group_size" in recipe.settings.data.init_args and not recipe.online:
            # All learn from the same answers, which are sampled once.
            base.append(f"--data.cache_dir={(self.directory / 'cache').resolve()}")
        if recipe.config == "configs/distillation.yaml":
            base.append(f"--model.teacher={self.place(named('grpo'), seed) / 'hf'}")
        if not (place / "hf").exists():
            resume = ["--ckpt_path=last"] if list(place.glob("checkpoints/last*.ckpt")) else []
            self.run(["fit", *base, *recipe.arguments(self.answers, self.points), *resume], place / "log.txt")
        policy = f"--model.policy={place / 'hf'}"
        self.run(["test", *base, policy], place / "log.txt")
        if read(place, "val/pass@1")[0][-1] < read(place, "train/loss")[0][-1]:
            # The budget ended the run after its last validation: validate once more.
            self.run(["validate", *base, policy, f"--trainer.default_root_dir={place / 'end'}"], place / "log.txt")
        (place / "done").touch()

    def curve(self, recipe: Recipe, seed: int, tag: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the number of sampled answers, and a scalar at each of these points, beginning with the common start."""
        place = self.place(recipe, seed)
        steps, values = read(place, tag)
        if recipe.online:
            at, answers = read(place, "rollout/answers")
        else:
            at, _ = read(place, "train/loss")
            answers = (at + 1) / (at[-1] + 1) * self.answers
        x = answers[np.searchsorted(at, steps, side="right") - 1]
        if (place / "end").exists():
            x, values = np.append(x, answers[-1]), np.append(values, read(place / "end", tag)[1][-1])
        if recipe.own_reward and tag == "val/reward_mean":
            return x, values
        _, start = read(self.directory / "before", tag)
        return np.concatenate([[0], x]), np.concatenate([start[:1], values])


def acted(place: Path) -> str:
    """Return what an algorithm did to its tokens, as means over the run."""
    logged = {tag: read(place, tag)[1] for tag in ACTED if has(place, tag)}
    return ", ".join(f"{ACTED[tag]} {float(values.mean()):.3g}" for tag, values in logged.items())


def draw(settings: Settings, recipes: list[Recipe], seeds: list[int], output: Path) -> None:
    """Draw every panel: the mean and the range over seeds."""
    figure, axes = plt.subplots(2, 3, figsize=(13, 7))
    for axis, (tag, title) in zip(axes.flat, PANELS.items(), strict=True):
        for number, recipe in enumerate(recipes):
            curves = [settings.curve(recipe, seed, tag) for seed in seeds_of(recipe, seeds)]
            grid = np.linspace(max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves), 60)
            values = np.stack([np.interp(grid, x, y) for x, y in curves])
            style = {"color": plt.cm.tab20(number % 20)} if len(recipes) > 10 else {"color": f"C{number}"}
            axis.plot(grid, values.mean(0), label=recipe.label, linewidth=2, **style)
            axis.fill_between(grid, values.min(0), values.max(0), alpha=0.2, linewidth=0, **style)
        axis.set_title(title)
        axis.set_xlabel("answers sampled")
        axis.grid(alpha=0.3)
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="lower center", ncol=min(6, len(recipes)))
    figure.suptitle(f"held-out problems, {len(seeds)} seed(s): mean, and the range between them")
    figure.tight_layout(rect=(0, 0.02 + 0.03 * -(-len(recipes) // 6), 1, 1))
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=100)


def seeds_of(recipe: Recipe, seeds: list[int]) -> list[int]:
    """Return the seeds of an algorithm: the first one alone for an overlay, unless it was asked for by itself."""
    return seeds[:1] if recipe.overlay else seeds


def tested(place: Path) -> dict[str, float]:
    """Return the test metrics of a run."""
    return {name: float(read(place, f"test/{name}")[1][-1]) for name in SHOWN}


def table(settings: Settings, recipes: list[Recipe], seeds: list[int]) -> str:
    """Return the test metrics of all runs as a Markdown table: pass@1 of each seed, and means of the others."""
    lines = [
        f"| | pass@1, seeds {', '.join(map(str, seeds))} | pass@8 | reward | length | what it did |",
        "|---|---|---|---|---|---|",
    ]
    rows: list[tuple[str, list[dict[str, Any]], str]] = [("before", [tested(settings.directory / "before")], "")]
    for one in recipes:
        places = [settings.place(one, seed) for seed in seeds_of(one, seeds)]
        rows.append((one.label, [tested(place) for place in places], acted(places[0])))
    for label, runs, did in rows:
        means = [f"{np.mean([run[name] for run in runs]):.3f}" for name in SHOWN[1:]]
        lines.append(
            f"| {label} | {' '.join(format(run['pass@1'], '.3f') for run in runs)} | "
            + " | ".join([*means, did])
            + " |"
        )
    return "\n".join(lines)


def main() -> None:
    """Train all runs that are not finished, then draw the picture and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, help="default: runs/compare, or runs/compare-quick")
    parser.add_argument("--quick", action="store_true", help="6400 answers, one seed, 64 held-out problems")
    parser.add_argument("--answers", type=int, help="sampled by each run; default 25600")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument(
        "--only",
        nargs="+",
        help="names of configurations and recipes, such as gspo recipe/luspo; default: the notebook's six",
    )
    parser.add_argument("--updates", type=int, nargs="+", help="updates a rollout; as in the configuration by default")
    parser.add_argument("--parallel", type=int, default=2, help="runs side by side")
    parser.add_argument("--output", type=Path, help="default: picture.png in the directory")
    options = parser.parse_args()
    directory = options.directory or Path("runs/compare-quick" if options.quick else "runs/compare")
    answers = options.answers or (6400 if options.quick else 25600)
    settings = Settings(directory, answers, points=5, problems=64 if options.quick else 128)
    seeds = options.seeds or ([0] if options.quick else [0, 1, 2])
    recipes = [named(name) for name in options.only] if options.only else SIX
    if options.updates:
        online = [one.with_updates(number) for one in recipes if one.online for number in options.updates]
        recipes = [one for one in recipes if not one.online] + online
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // options.parallel)))
    directory.mkdir(parents=True, exist_ok=True)
    claim = directory / "settings.json"
    wanted = {"answers": answers, "problems": settings.problems}
    if claim.exists() and json.loads(claim.read_text()) != wanted:
        raise SystemExit(f"{directory} holds runs with {claim.read_text()}: give another --directory")
    claim.write_text(json.dumps(wanted))
    settings.before()
    # A teacher first, where there is a student.
    students = [one for one in recipes if one.config == "configs/distillation.yaml"]
    teachers = [named("grpo")] if students and not any(one.name == "grpo" for one in recipes) else []
    first = [one for one in [*teachers, *recipes] if one not in students]
    waves = [
        [(recipe, seed) for seed in seeds for recipe in wave if seed in seeds_of(recipe, seeds)]
        for wave in (first, students)
    ]
    with ThreadPoolExecutor(options.parallel) as pool, tqdm(total=sum(map(len, waves)), desc="Runs", unit="run") as bar:
        for wave in waves:
            for one in [pool.submit(settings.train, recipe, seed) for recipe, seed in wave]:
                one.result()
                bar.update()
    text = table(settings, recipes, seeds)
    (directory / "table.md").write_text(text + "\n")
    output = options.output or directory / "picture.png"
    draw(settings, recipes, seeds, output)
    print(f"\n{text}\n\nsaved {output} and {directory / 'table.md'}")


if __name__ == "__main__":
    main()

"""Train the embedded policy in each of the environments, and draw what it learnt.

Usage: python -m examples.environments.curves [--only guess useless lookup hunt] [--seeds 0 1 2] [--rollouts 40]
       [--directory runs/environments] [--picture docs/pictures/environments.png]

Each policy is warmed up once, by SFT on a careless player, and then trained with each seed; `useless` is `guess` with replies that say
nothing. A run is a subprocess of one or two minutes on one core; one that has been made is not made again.
Needs matplotlib: pip install -e '.[plots]'
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np

from examples.plot_runs import read

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).parents[2]
HERE = "examples/environments"
#: Name → (the environment whose policy it begins with, its YAMLs).
GAMES = {
    "guess": ("guess", [f"{HERE}/guess.yaml"]),
    "useless": ("guess", [f"{HERE}/guess.yaml", f"{HERE}/useless.yaml"]),
    "lookup": ("lookup", [f"{HERE}/lookup.yaml"]),
    "hunt": ("hunt", [f"{HERE}/hunt.yaml"]),
}
#: Rollouts that are averaged in a curve.
_SMOOTH = 5


def train(place: Path, *arguments: str) -> None:
    """Train a policy, unless it has been trained.

    Args:
        place: directory of the run; its output goes to `log.txt` there.
        *arguments: of `fit`.
    """
    if (place / "hf").exists():
        return
    place.mkdir(parents=True, exist_ok=True)
    size = [f"--trainer.default_root_dir={place}", "--trainer.enable_progress_bar=false"]
    command = [sys.executable, "-m", "rl_lightning", "fit", *arguments, *size]
    with (place / "log.txt").open("w") as log:
        done = subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\nfailed; its output is in {place / 'log.txt'}")


def trained(game: str, seeds: list[int], rollouts: int, directory: Path) -> list[Path]:
    """Return the runs of a game, one a seed."""
    base, files = GAMES[game]
    warm = directory / f"{base}_sft"
    train(warm, "--config=sft", f"--config={HERE}/{base}_sft.yaml")
    places = [directory / f"{game}-{seed}" for seed in seeds]
    for seed, place in zip(seeds, places, strict=True):
        own = [f"--seed_everything={seed}", f"--model.policy={warm / 'hf'}", f"--trainer.max_epochs={rollouts}"]
        train(place, "--config=grpo", *(f"--config={file}" for file in files), *own)
    return places


def draw(runs: dict[str, list[Path]], picture: Path) -> None:
    """Draw the share of episodes that were won in training: the mean and the range over seeds."""
    figure, axes = plt.subplots(1, len(runs), figsize=(3.4 * len(runs), 2.9), sharey=True, squeeze=False)
    for axis, (game, places) in zip(axes.flat, runs.items(), strict=True):
        window = np.ones(_SMOOTH) / _SMOOTH
        won = [read(place, "rollout/correct_fraction")[1] for place in places]
        curves = np.stack([np.convolve(one, window, mode="valid") for one in won])
        at = np.arange(curves.shape[1]) + _SMOOTH
        axis.plot(at, curves.mean(0), linewidth=2)
        axis.fill_between(at, curves.min(0), curves.max(0), alpha=0.25, linewidth=0)
        axis.set(title=game, xlabel="rollouts", ylim=(0, 1))
        axis.grid(alpha=0.3)
    axes.flat[0].set_ylabel("episodes won")
    figure.tight_layout()
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=100)


def row(game: str, places: list[Path]) -> str:
    """Return a line of the table: before and after each seed's training, on held-out episodes; turns in the first and last rollout."""
    won = [read(place, "val/pass@1")[1] for place in places]
    worth = [read(place, "val/reward_mean")[1] for place in places]
    turns = [read(place, "rollout/turns_mean")[1] for place in places]
    before, after = (" ".join(f"{values[end]:.3f}" for values in won) for end in (0, -1))
    first, last = (np.mean([values[end] for values in worth]) for end in (0, -1))
    few, many = (np.mean([values[end] for values in turns]) for end in (0, -1))
    return f"| {game} | {before} | {after} | {first:.2f} → {last:.2f} | {few:.1f} → {many:.1f} |"


def main() -> None:
    """Train what is missing, then draw and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=GAMES, default=list(GAMES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--directory", type=Path, default=Path("runs/environments"))
    parser.add_argument("--picture", type=Path, default=Path("docs/pictures/environments.png"))
    parser.add_argument("--rollouts", type=int, default=40)
    options = parser.parse_args()
    directory = options.directory.resolve()
    runs = {game: trained(game, options.seeds, options.rollouts, directory) for game in options.only}
    seeds = ", ".join(map(str, options.seeds))
    print(f"| | won before, seeds {seeds} | won after | reward | turns |\n|---|---|---|---|---|")
    print("\n".join(row(game, places) for game, places in runs.items()))
    draw(runs, options.picture)
    print(f"saved {options.picture}")


if __name__ == "__main__":
    main()

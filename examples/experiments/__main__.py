"""Run the experiments of predictions.md, and print what was predicted beside what happened.

Usage: python -m examples.experiments [--only E3 E8] [--table] [--directory runs/experiments]

Each seed of an experiment leaves its numbers in the directory; after an interruption the same command goes on. `--table` prints what is
there. E10 is `python -m examples.overoptimization`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch

from examples.experiments import exact, trained
from examples.experiments.decide import RULES
from examples.experiments.rig import SEEDS
from examples.overoptimization.jobs import side_by_side
from examples.overoptimization.report import markdown
from examples.overoptimization.store import kept

PREDICTIONS = Path(__file__).with_name("predictions.md")
#: Experiment → what runs it for one seed. Its parts have letters.
EXPERIMENTS: dict[str, Callable[[int, Path], dict[str, float]]] = {
    "E1": trained.clip_higher,
    "E2": trained.dynamic_sampling,
    "E3": trained.averaging,
    "E4": trained.cut_off,
    "E5": trained.rejection,
    "E6": trained.margins,
    "E7": exact.cost,
    "E8": exact.difficulty,
    "E9a": exact.estimators,
    "E9b": exact.descents,
}


def place_of(directory: Path, name: str, seed: int) -> Path:
    """Return the file of the numbers of an experiment, for one seed."""
    return directory / name / f"seed-{seed}.pt"


def work(directory: Path, name: str, seed: int) -> None:
    """Do a seed of an experiment."""
    path = place_of(directory, name, seed)
    kept(path, lambda: EXPERIMENTS[name](seed, path.with_suffix("")))


def table(directory: Path) -> str:
    """Return what was predicted and what happened, for the experiments of which all seeds are there."""
    lines = []
    for row in predictions():
        if row[0] not in RULES:  # E10, which the study of over-optimisation decides
            continue
        name = row[0] if row[0] in EXPERIMENTS else row[0].rstrip("abc")
        files = [place_of(directory, name, seed) for seed in SEEDS]
        if not all(file.exists() for file in files):
            continue
        each = [torch.load(file) for file in files]
        outcome = RULES[row[0]]({one: [numbers[one] for numbers in each] for one in each[0]})
        lines.append([row[0], row[3], outcome.happened, "yes" if outcome.held else "**no**"])
    return markdown(["", "predicted", "happened", "came true"], lines)


def predictions() -> list[list[str]]:
    """Return the cells of the lines of predictions.md."""
    lines = [line for line in PREDICTIONS.read_text(encoding="utf-8").splitlines() if line.startswith("| E")]
    # A bar inside of a cell is written \\|.
    return [
        [cell.strip().replace("\0", "|") for cell in line.replace("\\|", "\0").strip("|").split("|")] for line in lines
    ]


def main() -> None:
    """Run what is not done, then print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=EXPERIMENTS)
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument("--parallel", type=int, default=2, help="seeds side by side")
    parser.add_argument("--directory", type=Path, default=Path("runs/experiments"))
    options = parser.parse_args()
    directory = options.directory.resolve()
    jobs = [] if options.table else [(name, seed) for name in options.only or EXPERIMENTS for seed in SEEDS]
    side_by_side(work, [[(directory, *job) for job in jobs]], options.parallel, "seed")
    print(table(directory))


if __name__ == "__main__":
    main()

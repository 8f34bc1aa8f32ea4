"""Make runs sick on purpose, and draw each beside one that is not.

Usage: python -m examples.diagnosis [--only lr_too_high ...] [--rollouts 50] [--directory runs/diagnosis] [--pictures docs/pictures]

Each run is a subprocess of a minute or two on two cores; one that has been made is not made again. What a run was warned of is in its
`log.txt`, and printed. Needs matplotlib: pip install -e '.[plots]'
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

import matplotlib

from examples.diagnosis.cases import CASES, COMMON, Case
from examples.plot_runs import read

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

ROOT = Path(__file__).parents[2]
#: Points of a curve that are averaged.
_SMOOTH = 3
_WARNING = re.compile(r"^.*(?:\(rollout \d+; said once\)|are equal within every group).*$", re.M)


def train(arguments: list[str], rollouts: int, place: Path) -> None:
    """Train a run, unless it has been trained.

    Args:
        arguments: besides those of all runs.
        rollouts: how many.
        place: its directory; its output goes to `log.txt` there.
    """
    if (place / "hf").exists():
        return
    place.mkdir(parents=True, exist_ok=True)
    size = [
        f"--trainer.max_epochs={rollouts}",
        f"--trainer.default_root_dir={place}",
        "--trainer.enable_progress_bar=false",
    ]
    command = [sys.executable, "-m", "rl_lightning", "fit", *COMMON, *arguments, *size]
    with (place / "log.txt").open("w") as log:
        done = subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\nfailed; its output is in {place / 'log.txt'}")


def draw(case: Case, runs: dict[str, Path], output: Path) -> None:
    """Draw the curves of a case.

    Args:
        case: says which.
        runs: label → directory, the sick run first.
        output: the picture.
    """
    figure, axes = plt.subplots(1, len(case.tags), figsize=(3.4 * len(case.tags), 2.8))
    for axis, tag in zip(axes, case.tags, strict=True):
        for color, (label, place) in zip(("tab:red", "tab:green"), runs.items(), strict=True):
            _, values = read(place, tag)
            window = np.ones(_SMOOTH) / _SMOOTH
            # Runs with several updates a rollout have more steps: a run is drawn from its beginning to its end.
            at = np.linspace(0, 1, len(values))[_SMOOTH - 1 :]
            axis.plot(at, np.convolve(values, window, mode="valid"), color=color, label=label, linewidth=2)
        axis.set_title(tag, fontsize=10)
        axis.set_xlabel("share of the run", fontsize=8)
        axis.grid(alpha=0.3)
        axis.tick_params(labelsize=8)
    axes[0].legend(fontsize=8)
    figure.suptitle(case.title, fontsize=11)
    figure.tight_layout()
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=100)
    plt.close(figure)


def warnings(place: Path) -> list[str]:
    """Return what a run was warned of by the library."""
    return _WARNING.findall((place / "log.txt").read_text())


def main() -> None:
    """Train what is missing, then draw and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[case.name for case in CASES], help="some of the sicknesses")
    parser.add_argument("--rollouts", type=int, default=50)
    parser.add_argument("--directory", type=Path, default=Path("runs/diagnosis"))
    parser.add_argument("--pictures", type=Path, default=Path("docs/pictures"))
    options = parser.parse_args()
    for case in CASES:
        if options.only and case.name not in options.only:
            continue
        rollouts = max(1, round(options.rollouts * case.share))
        directory = options.directory.resolve()
        sick = directory / case.name
        better = directory / (f"{case.name}.cured" if case.cured else "healthy")
        train(case.sick, rollouts, sick)
        train(case.cured, rollouts if case.cured else options.rollouts, better)
        output = options.pictures / f"sick_{case.name}.png"
        draw(case, {"sick": sick, case.cure: better}, output)
        print("\n  ".join([f"{case.title}: {output}", *(warnings(sick) or ["no warning"])]))


if __name__ == "__main__":
    main()

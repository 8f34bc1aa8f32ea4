"""Draw TensorBoard curves of some runs into a picture, as the mean and the range over the runs.

Usage: python examples/plot_runs.py --runs runs/demo/seed-* --tags rollout/reward_mean val/pass@1 --output picture.png

Needs matplotlib: pip install -e '.[plots]'
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def has(run: Path, tag: str) -> bool:
    """Return whether a run has a scalar."""
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 1}).Reload()
    return tag in events.Tags()["scalars"]


def read(run: Path, tag: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps and values of a scalar."""
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    if tag not in events.Tags()["scalars"]:
        raise SystemExit(f"{run} has no scalar {tag}; it has {', '.join(events.Tags()['scalars'])}")
    points = events.Scalars(tag)
    return np.array([point.step for point in points]), np.array([point.value for point in points])


def draw(axis: plt.Axes, runs: list[Path], tag: str, smooth: int) -> None:
    """Draw one scalar of all runs: each thinly, and their mean with the range between them."""
    series = [read(run, tag) for run in runs]
    length = min(len(values) for _, values in series)
    steps = series[0][0][:length]
    width = min(smooth, max(1, length // 5))
    window = np.ones(width) / width
    curves = np.stack([np.convolve(values[:length], window, mode="valid") for _, values in series])
    at = steps[width - 1 :]
    axis.fill_between(at, curves.min(0), curves.max(0), alpha=0.2, linewidth=0)
    axis.plot(at, curves.mean(0), linewidth=2, marker="o" if length < 15 else None)
    axis.set_title(tag, fontsize=10)
    axis.set_xlabel("optimizer step", fontsize=8)
    axis.grid(alpha=0.3)
    axis.tick_params(labelsize=8)


def picture(runs: list[Path], tags: list[str], output: Path, title: str = "", smooth: int = 5) -> None:
    """Draw some scalars of runs, one beside the other, and save the picture."""
    columns = min(3, len(tags))
    rows = -(-len(tags) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3.6 * columns, 2.6 * rows), squeeze=False)
    for axis in axes.flat[len(tags) :]:
        axis.set_visible(False)
    for axis, tag in zip(axes.flat, tags, strict=False):
        draw(axis, runs, tag, smooth)
    figure.suptitle(title or f"{len(runs)} run(s): mean, and the range between them", fontsize=11)
    figure.tight_layout()
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=110)
    print(f"saved {output}")


def main() -> None:
    """Read the command line, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, nargs="+", required=True)
    parser.add_argument("--tags", nargs="+", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--smooth", type=int, default=5, help="points averaged, where there are many")
    parser.add_argument("--title", default="")
    arguments = parser.parse_args()
    picture(arguments.runs, arguments.tags, arguments.output, arguments.title, arguments.smooth)


if __name__ == "__main__":
    main()

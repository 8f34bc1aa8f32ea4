"""The picture of the study."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

from examples.overoptimization.curves import Curve, pooled
from examples.overoptimization.settings import Run

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

#: Rewards whose best of n is drawn, as far as they are there.
_DRAWN = ("tiny-50", "linear-1000", "tiny-200", "tiny-1000", "tiny-4000", "big-200", "big-4000", "linear-4000", "gold")
#: Panels of training runs: title, panels of the runs in it, runs that are drawn beside them.
_PANELS = (
    ("GRPO and PPO, no penalty", ("GRPO", "PPO"), ("gold",)),
    ("divergence penalty, smaller learning rate", ("kl_coef",), ("tiny-1000", "big-4000")),
    ("ensembles, and a proxy trained again", ("ensembles",), ("tiny-1000", "big-4000")),
)


def draw(best_of: dict[str, list[Curve]], runs: Sequence[Run], curves: dict[str, list[Curve]], output: Path) -> None:
    """Draw gold (lines) and proxy (dots) against the distance from the start policy, in four panels.

    Args:
        best_of: reward → its curve for each seed.
        runs: all of them.
        curves: run → its curve for each seed.
        output: of the picture; the first panel alone goes to a file beside it.
    """
    figure, axes = plt.subplots(2, 2, figsize=(13, 9))
    drawn = {name: best_of[name] for name in _DRAWN if name in best_of}
    _panel(axes.flat[0], drawn, "best of n")
    for axis, (title, panels, beside) in zip(axes.flat[1:], _PANELS, strict=True):
        names = [name for name in beside if name in curves] + [run.name for run in runs if run.panel in panels]
        _panel(axis, {name: curves[name] for name in dict.fromkeys(names)}, title)
    figure.tight_layout()
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=80)
    plt.close(figure)
    alone, axis = plt.subplots(figsize=(7, 4))
    names = [name for name in ("gold", "tiny-1000", "big-4000", "PPO tiny-1000") if name in curves]
    _panel(
        axis, {name: curves[name] for name in names}, "reward that is optimised (dots), and what it stands for (lines)"
    )
    alone.tight_layout()
    alone.savefig(output.with_name(f"{output.stem}_one{output.suffix}"), dpi=80)
    plt.close(alone)


def _panel(axis: Axes, curves: dict[str, list[Curve]], title: str) -> None:
    for number, (name, each) in enumerate(curves.items()):
        curve = pooled(each)
        color = "black" if name == "gold" else f"C{number % 10}"
        axis.plot(curve.distance, curve.gold, ".-", color=color, label=name, linewidth=1.5, markersize=4)
        axis.fill_between(
            curve.distance, curve.gold - curve.error, curve.gold + curve.error, color=color, alpha=0.15, linewidth=0
        )
        if name != "gold":
            axis.plot(curve.distance, curve.proxy, ":", color=color, alpha=0.5)
    axis.axhline(0, color="grey", linewidth=0.5)
    axis.set_ylim(-1.2, 2.6)
    axis.set_title(title, fontsize=11)
    axis.set_xlabel("√KL from the start policy, √nats")
    axis.set_ylabel("reward less that at the start, sd")
    axis.legend(fontsize=7)

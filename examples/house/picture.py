"""Draw the files on the path of a rollout: boxes in layers, an arrow from each file to those that it imports or calls."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from examples.house.path import ROOMS, Run, room
from examples.house.sources import House, reachable

_WIDTH, _HEIGHT, _GAP, _FLOOR = 2.9, 0.72, 0.45, 1.75  # inches: of a box, between boxes, from one layer to the next
_COLOURS = dict(zip(ROOMS, ("#cfe3f5", "#fbe3c4", "#d9efd2", "#ece0f4", "#eeeeee"), strict=True))

Arrows = set[tuple[str, str]]


def draw(root: Path, run: Run, output: Path) -> None:
    """Draw the files on a run's path into a picture.

    A solid arrow is an import, a dashed one a call without an import, through a callback or an object that was passed in. Imports
    that follow from others are left out.

    Args:
        root: the checkout that the run was measured in.
        run: of one algorithm.
        output: .png or .svg.
    """
    house = House.read(root)
    names = run.path
    graph = {name: house.imports[name] & set(names) for name in names}
    imports = _reduced(graph)
    calls = {(a, b) for a, b in run.calls if a in graph and b in graph and b not in reachable(graph, a)}
    places = _places(graph, imports | calls)
    right = max(x for x, _ in places.values()) + _WIDTH
    top = max(y for _, y in places.values()) + _HEIGHT
    figure = plt.figure(figsize=(right + 0.4, top + 1.3))
    axis = figure.add_axes((0, 0, 1, 1), xlim=(-0.2, right + 0.2), ylim=(-0.7, top + 0.6))  # data units are inches
    axis.axis("off")
    for arrows, line, colour, bow in ((imports, "-", "#666666", 0.0), (calls, (0, (4, 3)), "#c0392b", 0.1)):
        for above, below in sorted(arrows):
            axis.add_patch(_arrow(places[above], places[below], line, colour, bow))
    for name, (x, y) in places.items():
        box = FancyBboxPatch((x, y), _WIDTH, _HEIGHT, "round,pad=0,rounding_size=0.1", ec="#333333", fc=_colour(name))
        axis.add_patch(box)
        middle = x + _WIDTH / 2
        axis.text(middle, y + 0.45, name, ha="center", va="center", fontsize=11, weight="bold")
        axis.text(middle, y + 0.2, f"{house.sources[name].lines} lines", ha="center", va="center", fontsize=9.5)
    total = sum(house.sources[name].lines for name in names)
    axis.text(0, top + 0.3, f"{len(names)} files, {total:,} lines", fontsize=14, weight="bold")
    legend = "solid: imports;   dashed red: calls without an import, through an object that it was given"
    axis.text(0, -0.5, legend, fontsize=10.5, color="#333333")
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=100)
    plt.close(figure)


def _reduced(graph: dict[str, set[str]]) -> Arrows:
    """Return the imports that do not follow from a chain of others; an import back to the file itself makes no chain."""
    arrows = set()
    for name, imported in graph.items():
        onward = {third: reachable(graph, third) for third in imported}
        chains = [reached for third, reached in onward.items() if name not in reached]
        arrows |= {(name, other) for other in imported if not any(other in reached for reached in chains)}
    return arrows


def _places(graph: dict[str, set[str]], arrows: Arrows) -> dict[str, tuple[float, float]]:
    """Return the lower left corner of every box, in inches: a file stands above all that it imports, near its neighbours."""
    floors: dict[int, list[str]] = {}
    for name in graph:
        floors.setdefault(_depth(graph, name), []).append(name)
    widest = max(len(names) for names in floors.values()) * (_WIDTH + _GAP)
    centre = dict.fromkeys(graph, widest / 2)
    for _ in range(20):  # rows settle after a few sweeps
        for names in floors.values():
            pull = {name: _mean([centre[b] for a, b in _both(arrows) if a == name] or [centre[name]]) for name in names}
            names.sort(key=lambda name: (pull[name], name))
            step = widest / len(names)
            centre.update({name: step * (number + 0.5) for number, name in enumerate(names)})
    return {name: (centre[name] - _WIDTH / 2, _FLOOR * floor) for floor, names in floors.items() for name in names}


def _depth(graph: dict[str, set[str]], name: str) -> int:
    """Return the length of the longest chain of imports below a file; the files of a cycle stand side by side."""
    cycle = {other for other in reachable(graph, name) if name in reachable(graph, other)} | {name}
    below = {other for one in cycle for other in graph[one]} - cycle
    return 1 + max((_depth(graph, other) for other in below), default=-1)


def _both(arrows: Arrows) -> Arrows:
    return arrows | {(b, a) for a, b in arrows}


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _arrow(
    start: tuple[float, float], end: tuple[float, float], line: object, colour: str, bow: float
) -> FancyArrowPatch:
    """Return an arrow between the facing edges of two boxes; over boxes of the same layer it goes in an arc."""
    (x0, y0), (x1, y1) = start, end
    shift = max(-1.0, min(1.0, (x1 - x0) / 8))
    if y0 == y1:
        ends = (x0 + _WIDTH / 2, y0 + _HEIGHT), (x1 + _WIDTH / 2, y1 + _HEIGHT)
        bow = -0.35 if x1 > x0 else 0.35
    else:
        down = y0 > y1
        ends = (
            (x0 + _WIDTH / 2 + shift, y0 if down else y0 + _HEIGHT),
            (x1 + _WIDTH / 2 - shift, y1 + _HEIGHT if down else y1),
        )
    return FancyArrowPatch(
        *ends, arrowstyle="-|>", mutation_scale=13, linestyle=line, color=colour, connectionstyle=f"arc3,rad={bow}"
    )


def _colour(name: str) -> str:
    return _COLOURS[room(name)]

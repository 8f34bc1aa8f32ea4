"""The measures of a checkout as one dictionary, and several of them side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from examples.house.path import ROOMS, Run, room, run_algorithm
from examples.house.sources import House, length, methods, reachable

_ALGORITHMS = ("GRPO", "PPO")
_KINDS = (
    ("path", "path of a rollout"),
    ("step", "and of its first optimizer step"),
    ("everything", "with everything they call"),
)
_METHODS, _FUNCTION, _FILE = 10, 40, 300


def measure(root: Path) -> dict[str, Any]:
    """Return all measures of a checkout, with the names behind every count."""
    house = House.read(root)
    paths = {}
    for algorithm in _ALGORITHMS:
        run = run_algorithm(root, algorithm)
        paths[algorithm] = {
            "path": _size(house, run.path, run),
            "step": _size(house, run.step, run),
            "everything": _size(house, run.everything, run),
        }
    return {"root": str(root), "paths": paths, **measure_text(house)}


def measure_text(house: House) -> dict[str, Any]:
    """Return the measures that need no run."""
    sources = house.sources.values()
    typed = house.type_checking_imports()
    comments, code = (sum(column) for column in zip(*(one.comment_and_code_lines() for one in sources), strict=True))
    sizes = {f"{one.name}: {node.name}": len(methods(node)) for one in sources for node in one.classes}
    lengths = {f"{one.name}: {node.name}": length(node) for one in sources for node in one.functions}
    return {
        "files": len(house.sources),
        "lines": sum(one.lines for one in sources),
        "circles": house.circles(),
        "type_checking_imports": [f"{one} → {other}" for one, other in typed],
        "that_hide_a_cycle": [f"{one} → {other}" for one, other in typed if one in reachable(house.imports, other)],
        "large_classes": _above(sizes, _METHODS),
        "any": _above({one.name: one.any_places for one in sources}, 0),
        "comments": {"comment_lines": comments, "code_lines": code, "percent": round(100 * comments / code, 1)},
        "silent_docstrings": [f"{one.name}: {name}" for one in sources for name in one.silent_docstrings()],
        "long_functions": _above(lengths, _FUNCTION),
        "long_files": _above({one.name: one.lines for one in sources}, _FILE),
    }


def table(measures: list[dict[str, Any]]) -> str:
    """Return checkouts side by side as Markdown, then the names behind the counts of each."""
    roots = [Path(one["root"]).name for one in measures]
    rows = [["", *roots], ["---"] * (1 + len(roots))]
    rows += [[label, *(str(count(one)) for one in measures)] for label, count in _rows()]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    for root, one in zip(roots, measures, strict=True):
        lines += ["", f"## {root}", *_names(one)]
    return "\n".join(lines)


def _rows() -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for algorithm in _ALGORITHMS:
        for kind, label in _KINDS:
            rows.append(
                (
                    f"{algorithm}, {label}: files, lines, classes; functions that run, their lines",
                    _sizes(algorithm, kind),
                )
            )
    rows += [
        ("package: files, lines", lambda one: f"{one['files']}, {one['lines']:,}"),
        ("import cycles (files in them)", lambda one: f"{len(one['circles'])} ({sum(map(len, one['circles']))})"),
        (
            "imports of own modules under TYPE_CHECKING (that hide a cycle)",
            lambda one: f"{len(one['type_checking_imports'])} ({len(one['that_hide_a_cycle'])})",
        ),
        (f"classes with more than {_METHODS} methods", lambda one: len(one["large_classes"])),
        ("uses of `Any`", lambda one: sum(one["any"].values())),
        (
            f"uses of `Any` in {', '.join(ROOMS)}",
            lambda one: sum(count for name, count in one["any"].items() if room(name) in ROOMS),
        ),
        ("comment lines per 100 lines of code", lambda one: one["comments"]["percent"]),
        ("public names whose docstring says nothing", lambda one: len(one["silent_docstrings"])),
        (f"functions over {_FUNCTION} lines", lambda one: len(one["long_functions"])),
        (f"files over {_FILE} lines", lambda one: len(one["long_files"])),
    ]
    return rows


def _sizes(algorithm: str, kind: str) -> Any:
    def count(one: dict[str, Any]) -> str:
        size = one["paths"][algorithm][kind]
        called = [lines for functions in size["functions"].values() for lines in functions.values()]
        return f"{len(size['files'])}, {size['lines']:,}, {size['classes']}; {len(called)}, {sum(called):,}"

    return count


def _names(one: dict[str, Any]) -> list[str]:
    lines = []
    for algorithm in _ALGORITHMS:
        path = one["paths"][algorithm]["path"]
        for name, count in path["files"].items():
            called = ", ".join(path["functions"][name]) or "generated by dataclasses"
            lines.append(f"- path of {algorithm}: {name} {count} ({called})")
    lines += [f"- import cycle: {', '.join(circle)}" for circle in one["circles"]]
    for label in ("type_checking_imports", "silent_docstrings"):
        lines.append(f"- {label}: {', '.join(one[label]) or 'none'}")
    for label in ("large_classes", "any", "long_functions", "long_files"):
        lines.append(f"- {label}: " + (", ".join(f"{name} {count}" for name, count in one[label].items()) or "none"))
    return lines


def _size(house: House, names: list[str], run: Run) -> dict[str, Any]:
    sources = [house.sources[name] for name in names]
    starts = {name: {line for file, line in run.functions if file == name} for name in names}
    return {
        "files": {one.name: one.lines for one in sources},
        "lines": sum(one.lines for one in sources),
        "classes": sum(len(one.classes) for one in sources),
        "functions": {one.name: one.called(starts[one.name]) for one in sources},
    }


def _above(counts: dict[str, int], limit: int) -> dict[str, int]:
    """Return the counts above a limit, the largest first."""
    large = {name: count for name, count in counts.items() if count > limit}
    return dict(sorted(large.items(), key=lambda item: (-item[1], item[0])))

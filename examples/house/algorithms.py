"""Count the lines of code of each algorithm's class, and of its file, without docstrings, comments and blank lines.

Usage: python -m examples.house.algorithms

Classes that several algorithms share are not counted: the last column names the one that an algorithm builds on.
"""

from __future__ import annotations

import ast
from pathlib import Path

from examples.house.sources import Source

ROOT = Path(__file__).resolve().parents[2]
#: What is built on, and not an algorithm.
SHARED = ("Module", "Options", "Correction", "Outputs", "Observations")


def algorithms(root: Path = ROOT) -> dict[str, tuple[int, int, str]]:
    """Return the name of an algorithm → lines of its class, lines of its file, the class that it builds on."""
    found = {}
    for path in sorted((root / "rl_lightning" / "algorithms").glob("*.py")):
        source = Source(path.name, path.read_text())
        for node in source.classes:
            bases = [ast.unparse(base) for base in node.bases]
            if bases and not node.name.startswith("_") and not node.name.endswith(SHARED) and path.name in _files(root):
                found[node.name] = source.code_lines(node), source.code_lines(), bases[0]
    return found


def _files(root: Path) -> set[str]:
    """Return the files of the algorithms that the package exports."""
    init = ast.parse((root / "rl_lightning" / "algorithms" / "__init__.py").read_text())
    known = {
        alias.name: f"{node.module.rpartition('.')[2]}.py"
        for node in init.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    return {file for name, file in known.items() if not name.endswith(SHARED) and name != "vanishes_with_advantage"}


def main() -> None:
    """Print the table."""
    print("| algorithm | its class | its file | builds on |\n|---|---|---|---|")
    for name, (own, file, base) in sorted(algorithms().items()):
        print(f"| {name} | {own} | {file} | {base} |")


if __name__ == "__main__":
    main()

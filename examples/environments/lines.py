"""Count the lines of code that one writes for each environment, here and for TRL 1.16, without docstrings, comments and blank lines.

Usage: python -m examples.environments.lines

Players that make demonstrations are not counted: TRL's side has none. Nor are settings: a YAML file here, a training script there.
"""

from __future__ import annotations

from pathlib import Path

from examples.house.sources import Source

HERE = Path(__file__).parent
NAMES = ("guess", "lookup", "hunt")
#: The function that makes demonstrations.
_PLAYER = "careless"


def written(path: Path) -> int:
    """Return how many lines of code an environment takes."""
    source = Source(path.name, path.read_text())
    players = [node for node in source.functions if node.name == _PLAYER]
    return source.code_lines() - sum(map(source.code_lines, players))


def main() -> None:
    """Print the table."""
    print("| | here | TRL 1.16 |\n|---|---|---|")
    for name in NAMES:
        print(f"| {name} | {written(HERE / f'{name}.py')} | {written(HERE / 'trl' / f'{name}.py')} |")


if __name__ == "__main__":
    main()

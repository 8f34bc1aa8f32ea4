"""Measure the source code of one or more checkouts of rl_lightning, or draw the files that a rollout of GRPO runs through.

Usage:
    python -m examples.house [--root CHECKOUT ...] [--json]
    python -m examples.house picture docs/pictures/path.png [--root CHECKOUT]

How each number is counted is said in `examples/house/sources.py` (from the text of the files) and `examples/house/path.py`
(from a run). The picture needs matplotlib: pip install -e '.[plots]'
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from examples.house.path import run_algorithm
from examples.house.report import measure, table

HERE = Path(__file__).resolve().parents[2]


def main() -> None:
    """Print the measures of every checkout, or draw one picture."""
    parser = argparse.ArgumentParser(
        "python -m examples.house", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", nargs="?", choices=["measure", "picture"], default="measure")
    parser.add_argument("output", nargs="?", type=Path, help="the picture's file: .png or .svg")
    parser.add_argument("--root", nargs="+", type=Path, default=[HERE], help="checkouts, one column each (this one)")
    parser.add_argument("--json", action="store_true", help="print JSON, with every name, instead of a table")
    arguments = parser.parse_args()
    roots = [root.resolve() for root in arguments.root]
    for root in roots:
        if not (root / "rl_lightning").is_dir():
            parser.error(f"{root} is no checkout: it has no folder rl_lightning")
    if (arguments.command == "picture") != (arguments.output is not None):
        parser.error("a picture needs a file to write to, as in: picture docs/pictures/path.png")
    if arguments.command == "picture":
        from examples.house.picture import draw

        draw(roots[0], run_algorithm(roots[0], "GRPO"), arguments.output)
        print(f"saved {arguments.output}")
        return
    measures = [measure(root) for root in roots]
    print(json.dumps(measures, indent=2) if arguments.json else table(measures))


if __name__ == "__main__":
    main()

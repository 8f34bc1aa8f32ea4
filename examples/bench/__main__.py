"""Benchmarks of this library against others on the same work.

Each side loads once, in its own process; then the sides take turns, step by step. The fields of a line:

ratio         seconds of the peer / ours, median over the pairs of steps; above 1 this library is faster
memory_ratio  our peak / the peer's; below 1 this library needs less
other_cpu     cores that other processes kept busy meanwhile; measure again if it is not near 0
cpu_ratio     ratio of the CPU seconds, which other processes disturb less
roofline      least time that sampling could take on this machine / our time
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from examples.bench.suite import BENCHMARKS, Options
from examples.bench.table import table
from examples.bench.tiny import save_tiny
from rl_lightning.errors import UserError

_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"


def main() -> None:
    """Run benchmarks; print a JSON line after each, and a table at the end."""
    parser = argparse.ArgumentParser(
        "python -m examples.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"all if none is given: {', '.join(BENCHMARKS)}")
    parser.add_argument("--pairs", type=int, help="of steps that count; 5 by default, 2 with --quick")
    parser.add_argument("--model", default=_MODEL, help="directory or name on the hub (%(default)s)")
    parser.add_argument("--out", type=Path, help="file to add the JSON lines to")
    parser.add_argument("--threads", type=int, default=2, help="of each side (%(default)s)")
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter of the peers (this one)")
    parser.add_argument(
        "--quick", action="store_true", help="a tiny random model: shows that it works, measures nothing"
    )
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"there is no benchmark {unknown[0]!r}: choose of {', '.join(BENCHMARKS)}")
    pairs = (2 if arguments.quick else 5) if arguments.pairs is None else arguments.pairs
    if pairs < 1 or arguments.threads < 1:
        parser.error("--pairs and --threads must be at least 1")
    lines = []
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        model = save_tiny(directory / "model") if arguments.quick else arguments.model
        options = Options(model, pairs, arguments.threads, directory, arguments.peer_python)
        for name in arguments.names or BENCHMARKS:
            try:
                line = BENCHMARKS[name].run(name, options)
            except UserError as error:
                parser.error(str(error))
            lines.append(line)
            print(json.dumps(line), flush=True)
            if arguments.out is not None:
                with arguments.out.open("a") as file:
                    print(json.dumps(line), file=file)
    print(f"\n{table(lines)}")


if __name__ == "__main__":
    main()

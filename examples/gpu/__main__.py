"""`make gpu`: run the tests that need a GPU, measure sampling and training, and write one file to send back.

python -m examples.gpu --output gpu_report.md
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
from pathlib import Path

import torch
import transformers

import rl_lightning
from examples.gpu import measure


def main() -> None:
    """Run everything; refuse where there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--output", type=Path, default=Path("gpu_report.md"), help="the file, Markdown with the same as JSON"
    )
    parser.add_argument("--no-tests", action="store_true", help="measure only")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit(
            "There is no GPU here that torch can use, and `make gpu` measures nothing else: run it on a machine with one, or "
            "`make check-all`, whose tests have a simulated GPU"
        )
    found = report(measure.Plan(), tests={} if options.no_tests else run_tests())
    options.output.write_text(page(found), encoding="utf-8")
    print(f"Written: {options.output}. To share it, open an issue and attach the file.")


def run_tests() -> dict[str, object]:
    """Run `tests/gpu`; return the last line of pytest and the names of what failed."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "tests/gpu", "-q", "-p", "no:xdist", "--no-header", "-rf"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return {"result": re.sub("=+", "", lines[-1]).strip() if lines else done.stderr[-500:], "failed": failed}


def report(plan: measure.Plan, tests: dict[str, object]) -> dict[str, object]:
    """Return everything that is known of this GPU."""
    memory = torch.cuda.get_device_properties(0).total_memory
    known = measure.limits()
    return {
        "machine": {
            "gpu": torch.cuda.get_device_name(0),
            "memory GiB": round(memory / 2**30, 1),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "transformers": transformers.__version__,
            "rl_lightning": rl_lightning.__version__,
        },
        "tests": tests,
        "limits": {"TFLOP/s, bfloat16": round(known.flops / 1e12, 1), "GB/s": round(known.bandwidth / 1e9)},
        "constants": measure.constants(plan),
        "sampling": measure.sampling(plan, known),
        "training": [measure.training(plan, known)],
    }


def page(found: dict[str, object]) -> str:
    """Return a report as Markdown, with the same as JSON at its end."""
    parts = ["# Report of a GPU\n"]
    for title, value in found.items():
        rows = value if isinstance(value, list) else [value]
        names = list(rows[0])
        parts.append(f"## {title.capitalize()}\n")
        parts.append("| " + " | ".join(names) + " |\n" + "|---" * len(names) + "|")
        parts += ["| " + " | ".join(str(row[name]) for name in names) + " |" for row in rows]
        parts.append("")
    return "\n".join([*parts, "```json", json.dumps(found, indent=1, default=str), "```", ""])


if __name__ == "__main__":
    main()

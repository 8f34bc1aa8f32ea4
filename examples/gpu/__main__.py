"""`make gpu`: measure sampling and training on a GPU, run the tests that need one, and write one file to send back.

python -m examples.gpu --output gpu_report.md --minutes 20

Every part runs in a process of its own: one that fails, hangs or breaks the GPU's context says so in the file and takes no other with it.
The file is written anew after each part, so it is there also if the machine goes away.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from examples.gpu import measure, paper
from examples.gpu.measure import Found
from rl_lightning.models.roofline import Limits

#: Seconds that a part may take; the tests get what is left.
LIMIT_S = 240
#: With less left than this, a part is not begun.
LEAST_S = 15


def machine(plan: measure.Plan) -> Found:
    """Return what the measurements depend on."""
    packages = ("torch", "transformers", "lightning", "peft", "bitsandbytes", "vllm")
    here = torch.cuda.get_device_properties(0)
    return [
        {
            "gpu": here.name,
            "GPUs": torch.cuda.device_count(),
            "memory GiB": round(here.total_memory / 2**30, 1),
            "driver": _said(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]),
            "cuda": torch.version.cuda,
            "python": platform.python_version(),
            "commit": _said(["git", "rev-parse", "--short", "HEAD"]),
            **{name: _version(name) for name in packages},
        }
    ]


#: Name → what it measures; in this order, so that the most wanted is there when time runs out.
PARTS: dict[str, Callable[[measure.Plan], Found]] = {
    "machine": machine,
    "limits": measure.limits,
    "constants": measure.constants,
    **{f"sampling, {loop}": partial(measure.sampling, loop=loop) for loop in ("chunks", "step by step")},
    "training": measure.training,
    "sampling in bf16-mixed, chunks": partial(measure.mixed, loop="chunks"),
    "sampling, graphs": partial(measure.sampling, loop="graphs"),
    **{f"quantised, {bits}": partial(measure.quantised, bits=bits) for bits in ("4bit", "8bit")},
    **{f"vllm, {way}": partial(measure.vllm, way=way) for way in ("in memory", "files")},
}


#: Parts that are made of several → what these differ in.
_OF = {"sampling": "loop", "sampling in bf16-mixed": "loop", "quantised": "bits", "vllm": "asked for"}


def main() -> None:
    """Run everything; refuse where there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output", type=Path, default=Path("gpu_report.md"), help="the file, Markdown with the same as JSON"
    )
    parser.add_argument("--minutes", type=float, default=20, help="what has not begun by then is left out")
    parser.add_argument("--no-tests", action="store_true", help="measure only")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit(
            "There is no GPU here that torch can use, and `make gpu` measures nothing else: run it on a machine with one (with "
            "TORCH=torch), or `make check-all`, whose tests have a simulated GPU"
        )
    if options.part is not None:
        options.output.write_text(json.dumps(PARTS[options.part](measure.Plan()), default=str))
        return
    end = time.monotonic() + 60 * options.minutes
    steps: dict[str, Callable[[float], Found]] = {name: partial(in_a_process, name) for name in PARTS}
    if not options.no_tests:
        steps["tests"] = run_tests
    found: dict[str, Found] = {}
    for name, step in steps.items():
        left = end - time.monotonic()
        print(f"{name}: {left / 60:.0f} minutes left", flush=True)
        found[name] = step(left) if left > LEAST_S else [{"left out": f"the {options.minutes:g} minutes were over"}]
        options.output.write_text(page(found), encoding="utf-8")
    print(f"Written: {options.output}. To share it, open an issue and attach the file.")


def in_a_process(name: str, left: float) -> Found:
    """Run a part in a process of its own; return what it found, or how it failed.

    Args:
        name: of the part.
        left: seconds.
    """
    with tempfile.TemporaryDirectory() as scratch:
        result, log = Path(scratch) / "result.json", Path(scratch) / "log.txt"
        limit = min(LIMIT_S, left)
        ended = _run([sys.executable, "-m", "examples.gpu", "--part", name, "--output", str(result)], log, limit)
        if ended == 0:
            found: Found = json.loads(result.read_text())
            return found
        why = f"took longer than {limit:.0f} s" if ended is None else f"ended with {ended}"
        return [{"failed": why, "it said": log.read_text(errors="replace")[-2000:]}]


def run_tests(left: float) -> Found:
    """Run `tests/gpu` for at most so many seconds; return how many passed, what failed and what pytest said of it."""
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "log.txt"
        chosen = ["-m", "gpu", "tests/gpu", "-v", "-p", "no:xdist", "--no-header", "--tb=short", "--color=no"]
        ended = _run([sys.executable, "-m", "pytest", *chosen], log, left)
        said = log.read_text(errors="replace")
    outcomes = dict(re.findall(r"^(\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED)", said, re.MULTILINE))
    counts = {kind.lower(): list(outcomes.values()).count(kind) for kind in ("PASSED", "FAILED", "ERROR", "SKIPPED")}
    failed = [name for name, kind in outcomes.items() if kind in ("FAILED", "ERROR")]
    over = {} if ended is not None else {"cut off": f"after {left:.0f} s"}
    more = {"it said": said[-12000:]} if failed or not outcomes else {}
    return [counts | over | {"failures": failed} | more]


def _run(command: list[str], log: Path, limit_s: float) -> int | None:
    """Run a command with its output in a file; return its status, or None if it took too long. What it has started ends with it."""
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        return process.wait(limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return None


def page(found: Mapping[str, Found]) -> str:
    """Return what was found as Markdown, with the same as JSON at its end."""
    parts = ["# Report of a GPU\n"]
    for title, rows in together(found).items():
        parts.append(f"## {title.capitalize()}\n")
        plain = [{name: value for name, value in row.items() if not _is_long(value)} for row in rows]
        names = list(dict.fromkeys(name for row in plain for name in row))
        parts.append("| " + " | ".join(names) + " |\n" + "|---" * len(names) + "|")
        parts += ["| " + " | ".join(str(row.get(name, "")) for name in names) + " |" for row in plain]
        parts += [f"\n```text\n{value}\n```" for row in rows for value in row.values() if _is_long(value)]
        parts.append("")
    return "\n".join([*parts, "```json", json.dumps(found, indent=1, default=str), "```", ""])


def _is_long(value: object) -> bool:
    return isinstance(value, str) and "\n" in value


def together(found: Mapping[str, Found]) -> dict[str, Found]:
    """Return what was found with one table for all loops of sampling, and what follows from several parts: shares of the roofline,
    what was estimated on paper, and how many responses are those of the first loop."""
    limits = next((Limits(row["flops"], row["bandwidth"]) for row in found.get("limits", []) if "flops" in row), None)
    tables: dict[str, Found] = {}
    first: dict[tuple[str, int], list[int]] = {}
    for title, rows in found.items():
        kind, _, loop = title.partition(", ")
        for row in rows:
            shown = {_OF[kind]: loop} | row if loop else dict(row)
            if "least" in row:
                flops, read = shown.pop("least")
                if limits is not None:
                    shown["share of the roofline"] = round(limits.least_seconds(flops, read) / row["seconds"], 3)
            if "digests" in row:
                own = shown.pop("digests")
                expected = first.setdefault((kind, row["rows"]), own)
                shown["same responses"] = round(sum(map(int.__eq__, own, expected)) / len(own), 3)
                shown["tokens/s on paper"] = paper.estimate(loop, row["rows"], row["context"])
            tables.setdefault(kind, []).append(shown)
    return tables


def _said(command: list[str]) -> str:
    """Return the first line of what a command prints; nothing if there is no such command."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return next(iter(done.stdout.splitlines()), "")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    main()

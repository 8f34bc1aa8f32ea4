"""The files that one rollout and its first optimizer step run through, found by tracing a real fit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

#: The rooms that a reader of a rollout goes through. All others are libraries that these call.
ROOMS = ("data", "algorithms", "callbacks", "hooks", "types")
_SCRIPT = Path(__file__).with_name("traced.py")


@dataclass(frozen=True)
class Run:
    """What ran between the request for the first batch and the end of the first optimizer step.

    Args:
        algorithm: file of the algorithm.
        rollout: files that had run when the first microbatch was served.
        functions: (file, first line of a function) pairs; files are relative to the folder rl_lightning.
        calls: (file of the caller, file that is called) pairs; frames of other packages in between are skipped.
    """

    algorithm: str
    rollout: frozenset[str]
    functions: frozenset[tuple[str, int]]
    calls: frozenset[tuple[str, str]]

    @cached_property
    def everything(self) -> list[str]:
        """All files of the package with a function that ran; reward processes are not traced."""
        return sorted({file for file, _ in self.functions})

    @cached_property
    def path(self) -> list[str]:
        """The files that make a rollout, from prompts to microbatches, in one of `ROOMS`; and the algorithm's own, which says what
        is made of them."""
        return sorted({file for file in self.rollout if room(file) in ROOMS} | {self.algorithm})

    @cached_property
    def step(self) -> list[str]:
        """The files of those rooms up to the end of the first optimizer step."""
        return sorted({file for file in self.everything if room(file) in ROOMS} | {self.algorithm})


def room(file: str) -> str:
    """Return the folder or module directly under rl_lightning that a file belongs to, such as `data` or `hooks`."""
    return file.partition("/")[0].removesuffix(".py")


def run_algorithm(root: Path, algorithm: str) -> Run:
    """Fit the embedded policy with a checkout's code in a process of its own, and return what ran.

    Args:
        root: the checkout.
        algorithm: name of a class in `rl_lightning.algorithms` that learns from rollouts.

    Raises:
        SystemExit: with the process's messages, where the fit fails.
    """
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        # Fed through stdin, so that the folder of the script is not searched for modules.
        [sys.executable, "-", algorithm],
        input=_SCRIPT.read_text(), cwd=root, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"a fit of {algorithm} with the code in {root} failed:\n{done.stderr}")
    record = json.loads(done.stdout.splitlines()[-1])
    functions, calls = (frozenset(map(tuple, record[name])) for name in ("functions", "calls"))
    return Run(f"algorithms/{algorithm.lower()}.py", frozenset(record["rollout"]), functions, calls)

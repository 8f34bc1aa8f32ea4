"""Child processes: workers that follow commands, and runs that print one JSON line."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from examples.bench.meter import family

ROOT = Path(__file__).parents[2]


def environment(threads: int) -> dict[str, str]:
    """Return the environment of every measured process: the same number of threads."""
    return {
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }


class Worker:
    """A child process that follows commands, one per line; see `examples.bench.turns`.

    Between its steps it is suspended (SIGSTOP) with all its descendants. Otherwise threads that spin while they wait, such as
    those of an inference engine, would take cores from the side that is measured.

    Args:
        command: the program and its arguments.
        extra: environment variables in addition to this process's.
        log: file for its standard error.
    """

    def __init__(self, command: Sequence[str], extra: Mapping[str, str], log: Path) -> None:
        self._command = " ".join(command)
        self._log = log
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=os.environ | dict(extra),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def ask(self, command: str) -> dict[str, float]:
        """Send a command and return the answer.

        Raises:
            SystemExit: with the end of its log, if the worker has died.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        self._send(signal.SIGCONT)
        try:
            print(command, file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        self._send(signal.SIGSTOP)
        if not line:
            raise SystemExit(f"{self._command} has ended:\n{self._log.read_text()[-3000:]}")
        answer: dict[str, float] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process, by force if it does not end by itself."""
        self._send(signal.SIGCONT)
        try:
            self._process.communicate("stop\n", timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _send(self, number: signal.Signals) -> None:
        for one in family(self._process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(one, number)


def worker(target: str, work: Path, threads: int, python: str = sys.executable) -> Worker:
    """Start one side of a benchmark.

    Args:
        target: `MODULE:FUNCTION`.
        work: file with its work; its log is written beside it.
        threads: number of torch's threads.
        python: the interpreter.
    """
    command = [python, "-m", "examples.bench.worker", target, str(work)]
    return Worker(command, environment(threads), work.parent / f"{target.replace(':', '.')}.log")


def last_line(
    module: str, arguments: Sequence[str], extra: Mapping[str, str], python: str = sys.executable
) -> dict[str, Any]:
    """Run a module in its own process and return the JSON object on the last line that it prints.

    All lines before that go to standard error.

    Raises:
        SystemExit: with the end of its log, if it fails.
    """
    command = [python, "-m", module, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | dict(extra), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-3000:]}")
    *readable, last = done.stdout.splitlines()
    print("\n".join(readable), file=sys.stderr, flush=True)
    numbers: dict[str, Any] = json.loads(last)
    return numbers

"""Processes that start warm: forks of one that has spent the seconds that the imports take, and has done nothing else."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["rl_lightning.cli", "rl_lightning.algorithms", "rl_lightning.data", "tests.support"])


@cache
def imports_printed() -> Path:
    """Start what all warm processes are forks of, a new interpreter; return the file to which its imports print errors and warnings."""
    (said, path), kept, here = tempfile.mkstemp(".imports"), os.dup(2), Path.cwd()
    atexit.register(os.unlink, path)
    try:
        os.chdir(ROOT)  # where it finds the tests
        os.dup2(said, 2)
        ensure_running()
    finally:
        os.dup2(kept, 2)
        os.chdir(here)
        os.close(kept)
        os.close(said)
    return Path(path)


class Warm:
    """Calls a function in a new process, in the repository's root; otherwise like a `subprocess.Popen`.

    Args:
        target: a function of a module, which the process imports.
        arguments: what it is called with; everything must pickle.
        output: the file to which it prints.
        environment: what it has besides this process's variables.
    """

    def __init__(
        self, target: Callable[..., None], *arguments: Any, output: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        whole = {**os.environ, **(environment or {})}
        imports_printed()
        self._process = _SERVER.Process(target=_begin, args=(target, str(output), whole, arguments), daemon=True)
        self._process.start()
        # Before multiprocessing ends it with SIGTERM, which a Trainer takes for a scheduler's and discusses with all ranks.
        atexit.register(self.kill)
        self.pid: int = self._process.pid or 0

    def poll(self) -> int | None:
        """Return its exit status, minus the signal's number if one has ended it; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end, and return its exit status."""
        self._process.join(timeout)
        status = self.poll()
        if status is None:
            raise subprocess.TimeoutExpired(str(self._process), timeout or 0)
        return status

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()


def _begin(target: Callable[..., None], output: str, environment: dict[str, str], arguments: tuple[Any, ...]) -> None:
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(environment)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    target(*arguments)


def command_line(*arguments: str) -> None:
    """Do what `python -m rl_lightning` does; to be the target of a `Warm` process."""
    sys.argv = ["rl_lightning", *arguments]
    runpy.run_module("rl_lightning", run_name="__main__", alter_sys=True)


def command_line_into(path: str, *arguments: str) -> None:
    """The same, with standard output in a file of its own."""
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), 1)
    command_line(*arguments)

"""One worker process, as its parent sees it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

from rl_lightning.rewards import frames

#: A worker's imports may be slow on a busy machine; only a worker that never gets ready should meet this, in seconds.
STARTUP_S = 300.0

_ROOT = str(Path(__file__).resolve().parents[2])
_BLOCK = 1 << 16  # bytes, what a pipe holds


class Worker:
    """One process, what has been sent to it, and what it still owes."""

    def __init__(self, settings: dict[str, Any]) -> None:
        lifeline, self.lifeline = os.pipe()
        paths = [_ROOT, *filter(None, [os.environ.get("PYTHONPATH")])]
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "rl_lightning.rewards.worker", str(lifeline)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                pass_fds=(lifeline,),
                env={"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": os.pathsep.join(paths)},
                # A group of its own: Ctrl-C stays away from it, and whatever a reward starts dies with it.
                start_new_session=True,
            )
        finally:
            os.close(lifeline)
        assert self.process.stdin is not None and self.process.stdout is not None
        self.requests = self.process.stdin.fileno()
        self.responses = self.process.stdout.fileno()
        os.set_blocking(self.requests, False)
        os.set_blocking(self.responses, False)
        self.outgoing = bytearray(frames.pack(settings))
        self.incoming = bytearray()
        self.defined: set[int] = set()
        self.owed: deque[int] = deque()
        self.ready = False
        self.flush()
        self.deadline = time.monotonic() + STARTUP_S

    def flush(self) -> None:
        """Write as much as the pipe takes; a dead worker is noticed when reading."""
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            while self.outgoing:
                del self.outgoing[: os.write(self.requests, self.outgoing[:_BLOCK])]

    def receive(self) -> tuple[list[Any], bool]:
        """Return the messages that have arrived, and whether the worker is still there."""
        alive = True
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.responses, _BLOCK):
                self.incoming += data
                if len(data) < _BLOCK:
                    break
            else:
                alive = False
        return frames.unpack(self.incoming), alive

    def gone(self) -> bool:
        """Return whether the process has ended; it is not reaped, so that its id stays its own."""
        return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def interrupt(self) -> None:
        """End the process and everything it started, without waiting for that."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def kill(self) -> int:
        """End the process and everything it started; return its exit status."""
        self.interrupt()
        status = self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()
        if self.lifeline >= 0:
            os.close(self.lifeline)
            self.lifeline = -1
        return status

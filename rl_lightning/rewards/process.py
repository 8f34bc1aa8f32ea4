"""One worker process, as its parent sees it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

from rl_lightning.errors import UserError
from rl_lightning.rewards import frames

_ROOT = str(Path(__file__).resolve().parents[2])
_BLOCK = 1 << 16  # bytes, what a pipe holds
#: How long what keeps a worker may take to end it, in seconds, before it is killed itself.
_END_S = 5.0


class Worker:
    """One process, what has been sent to it, and what it still owes.

    It runs below a parent of its own, which ends it and all that it has started: :mod:`rl_lightning.rewards.keeper`.

    Args:
        settings: the first message.
        start_s: longest time in seconds until it is ready, and for each function that it loads.

    Raises:
        UserError: if the system grants no process.
    """

    def __init__(self, settings: dict[str, Any], start_s: float) -> None:
        paths = [_ROOT, *filter(None, [os.environ.get("PYTHONPATH")])]
        lifeline = -1
        try:
            lifeline, self._lifeline = os.pipe()
            self.process = subprocess.Popen(
                [sys.executable, "-m", "rl_lightning.rewards.worker", str(lifeline)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                pass_fds=(lifeline,),
                env={"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": os.pathsep.join(paths)},
                start_new_session=True,  # Ctrl-C stays away from it.
            )
        except OSError as error:
            if lifeline >= 0:
                os.close(self._lifeline)
            raise UserError(
                f"a reward worker cannot be started ({error}): lower reward_limits.workers, or raise what the system allows "
                "(ulimit -u for processes, ulimit -n for files)"
            ) from error
        finally:
            if lifeline >= 0:
                os.close(lifeline)
        assert self.process.stdin is not None and self.process.stdout is not None
        self.requests = self.process.stdin.fileno()
        self.responses = self.process.stdout.fileno()
        os.set_blocking(self.requests, False)
        os.set_blocking(self.responses, False)
        self.outgoing = bytearray(frames.pack(settings))
        self.incoming = bytearray()
        self.start_s = start_s
        self.ready = False
        self.clock_stopped = False
        #: Functions by key: those that were sent, are yet to be loaded, and have been called with success.
        self.defined: set[int] = set()
        self.loading: deque[int] = deque()
        self.proven: set[int] = set()
        self.owed: deque[int] = deque()
        self.flush()
        self.deadline = time.monotonic() + start_s

    @property
    def starting(self) -> bool:
        """Whether it is busy with set-up or imports, which no call pays for."""
        return not self.ready or bool(self.loading)

    def wind(self, timeout_s: float) -> None:
        """Start the clock for what it is at, a call being allowed so many seconds."""
        untimed = self.starting or self.clock_stopped
        self.deadline = time.monotonic() + (self.start_s if untimed else timeout_s)

    def define(self, key: int, pickled: bytes) -> None:
        """Have it load a function."""
        self.outgoing += frames.pack(("define", key, pickled))
        self.defined.add(key)
        self.loading.append(key)

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
        """Return whether the process has ended."""
        poll = select.poll()
        poll.register(self.responses, 0)  # POLLHUP is always reported
        return bool(poll.poll(0))

    def interrupt(self) -> None:
        """End the process and everything it started, without waiting for that."""
        lifeline, self._lifeline = self._lifeline, -1
        if lifeline >= 0:
            with contextlib.suppress(BrokenPipeError):
                os.write(lifeline, b".")  # a fork of this process may keep it open
            os.close(lifeline)

    def kill(self) -> int:
        """End the process and everything it started; return its exit status."""
        if self.gone():  # let its parent see how it has ended
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(_END_S)
        self.interrupt()
        try:
            status = self.process.wait(_END_S)
        except subprocess.TimeoutExpired:  # its parent was stopped, say
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
            status = self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()
        return status

"""One reward worker, as its parent sees it: the process, the pipes to it, and what it still owes."""

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

from rl_lightning.errors import UserError
from rl_lightning.rewards import messages

#: The directory that `rl_lightning` is imported from.
_ROOT = str(Path(__file__).resolve().parents[2])
_BLOCK = 1 << 16  # bytes, what a pipe holds
#: Seconds that a keeper may take to end its worker before it is killed itself.
_END_S = 5.0


class Worker:
    """One process for calls; :mod:`rl_lightning.rewards.messages` says what is sent and answered.

    Below this process runs a keeper, and the worker below that; the keeper ends the worker and all that it has started when
    a byte arrives in the `lifeline` pipe, or when nobody is left who could write to it: see :mod:`rl_lightning.rewards.worker`.

    Args:
        settings: the first message.
        start_s: longest time in seconds until it is ready, and for each function that it loads.

    Raises:
        UserError: if the system grants no process.
    """

    def __init__(self, settings: messages.Settings, start_s: float) -> None:
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
            if lifeline >= 0:  # the keeper's end; ours is `_lifeline`
                os.close(lifeline)
        assert self.process.stdin is not None and self.process.stdout is not None
        self.requests = self.process.stdin.fileno()
        self.responses = self.process.stdout.fileno()
        # A worker that hangs must not hang its parent.
        os.set_blocking(self.requests, False)
        os.set_blocking(self.responses, False)
        self.outgoing = bytearray(messages.pack(settings))
        self.incoming = bytearray()
        self.start_s = start_s
        self.ready = False
        self.clock_stopped = False
        #: Functions by key: those that were sent, are yet to be loaded, and have been called with success.
        self.defined: set[int] = set()
        self.loading: deque[int] = deque()
        self.proven: set[int] = set()
        #: Calls that were sent and have no outcome yet, by their place in the present `map`; it is at the first of them.
        self.owed: deque[int] = deque()
        self.flush()
        self.deadline = time.monotonic() + start_s

    @property
    def starting(self) -> bool:
        """Whether it is busy with set-up or imports, which no call pays for."""
        return not self.ready or bool(self.loading)

    def restart_clock(self, timeout_s: float) -> None:
        """Set the deadline of what it is at: `timeout_s` seconds from now for a call, `start_s` for set-up and imports, and for a
        call whose own clock has stopped."""
        untimed = self.starting or self.clock_stopped
        self.deadline = time.monotonic() + (self.start_s if untimed else timeout_s)

    def define(self, key: int, pickled: bytes) -> None:
        """Have it load a function.

        Args:
            key: names the function in later calls.
            pickled: the callable, or its dotted path.
        """
        self.outgoing += messages.pack(("define", key, pickled))
        self.defined.add(key)
        self.loading.append(key)

    def flush(self) -> None:
        """Write as much as the pipe takes; a dead worker is noticed when reading."""
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            while self.outgoing:
                del self.outgoing[: os.write(self.requests, self.outgoing[:_BLOCK])]

    def receive(self) -> tuple[list[messages.Answer], bool]:
        """Return the messages that have arrived, and whether the worker is still there."""
        alive = True
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.responses, _BLOCK):
                self.incoming += data
                if len(data) < _BLOCK:
                    break
            else:  # nothing to read, and nobody left to write
                alive = False
        return messages.unpack(self.incoming), alive

    def gone(self) -> bool:
        """Return whether the worker has ended. It alone holds the other end of `responses`."""
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
        if self.gone():  # first let its keeper see how it ended, and end in the same way
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(_END_S)
        self.interrupt()
        try:
            status = self.process.wait(_END_S)
        except subprocess.TimeoutExpired:  # its keeper was stopped by SIGSTOP, say
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
            status = self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()
        return status

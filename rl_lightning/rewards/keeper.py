"""The parent of a reward worker: ends it, and all that it started, when the trainer says so or is gone.

A process group is not enough for that: what makes a session of its own, or is orphaned by its parent, leaves it. On Linux a
process can be the one that orphans below it fall to (PR_SET_CHILD_SUBREAPER): whoever kills its own children until it has none
has then killed every descendant. Elsewhere only the worker's process group ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import select
import signal
import sys
import time
from types import FrameType

#: What schedulers and terminals send to every process of a job; the trainer decides what becomes of it.
_SIGNALS_OF_THE_JOB = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
_LINUX = sys.platform == "linux"
_LOOK_EVERY_S = 1.0
_KILL_FOR_S = 4.0  # what still lives then cannot be killed: it hangs in the kernel, or belongs to another user


def keep(lifeline: int) -> None:
    """Return in a forked child, the worker; the calling process lives only to end it and what it starts.

    Args:
        lifeline: the end of a pipe for reading. When something arrives there, or nobody is left to write, the worker ends.
    """
    trainer, wake = os.getppid(), _wake_by_signals()
    if _LINUX:
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    keeper = os.getpid()
    worker = os.fork()
    if worker == 0:
        _become_worker(keeper)
        os.close(lifeline)
        return
    # The worker alone holds its ends of the pipes, so that the trainer sees when it is gone.
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    status = _wait(worker, trainer, lifeline, wake)
    _kill_descendants(worker)
    _end_like(status)


def _wake_by_signals() -> int:
    """Hear of children that end, and of nothing else; return what to poll for that."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    os.set_blocking(reading, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, *_SIGNALS_OF_THE_JOB):
        signal.signal(number, _ignore)
    return reading


def _ignore(number: int, frame: FrameType | None) -> None:
    """Do nothing: unlike SIG_IGN, a handler is not passed on to programs that rewards start."""


def _become_worker(keeper: int) -> None:
    os.setpgid(0, 0)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.register_at_fork(after_in_child=_default_signals)
    if _LINUX:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != keeper:
            os._exit(1)


def _default_signals() -> None:
    for number in _SIGNALS_OF_THE_JOB:
        signal.signal(number, signal.SIG_DFL)


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _wait(worker: int, trainer: int, lifeline: int, wake: int) -> int | None:
    """Return how the worker ended; None if it is to be ended."""
    poll = select.poll()
    poll.register(lifeline, select.POLLIN)
    poll.register(wake, select.POLLIN)
    while True:
        for number, _ in poll.poll(1000 * _LOOK_EVERY_S):
            if number == lifeline:
                return None
            with contextlib.suppress(BlockingIOError):
                os.read(wake, 1 << 10)
        # Orphans of the worker are ours to reap.
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == worker:
                return ended[1]
        # A fork of the trainer may hold the other end of the lifeline.
        if os.getppid() != trainer:
            return None


def _kill_descendants(worker: int) -> None:
    """Kill children, and those who become ours by that, until there are none."""
    until = time.monotonic() + _KILL_FOR_S
    while time.monotonic() < until:
        for child in _children() if _LINUX else [-worker]:  # minus: its process group
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(child, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.001)


def _children() -> list[int]:
    """Return the processes whose parent is this one."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{entry}/stat", "rb") as file:
                # The name, in parentheses, may itself hold spaces and parentheses.
                if int(file.read().rpartition(b")")[2].split()[1]) == os.getpid():
                    found.append(int(entry))
    return found


def _end_like(status: int | None) -> None:
    """End as the worker did, for the trainer to see."""
    number = signal.SIGKILL if status is None else os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
    if number is not None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.WEXITSTATUS(status or 0))

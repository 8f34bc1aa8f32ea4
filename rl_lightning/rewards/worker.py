"""The process in which reward functions run: ``python -m rl_lightning.rewards.worker LIFELINE``.

Started by :class:`rl_lightning.rewards.process.Worker`, not by hand; the messages are those of :mod:`rl_lightning.rewards.messages`.
It is two processes:

    trainer ──► keeper ──► worker ──► what rewards start
                leads a    leads a    in any session or process group
                session    process group

The keeper ends the worker and all that it has started when the trainer says so or is gone. To kill a process group is not
enough: a process with a session of its own, or one whose parent has ended, has left it. On Linux the keeper is the process
that orphans below it fall to (PR_SET_CHILD_SUBREAPER), so that once it has killed its children until it has none, it has killed
every descendant. On other systems only the worker's process group ends.
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
import traceback
from types import FrameType
from typing import BinaryIO, cast

from rl_lightning.rewards import calls, messages, tally
from rl_lightning.rewards.resolve import resolve

#: What schedulers and terminals send to every process of a job; the trainer decides what becomes of it.
_SIGNALS_OF_THE_JOB = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

_LINUX = sys.platform == "linux"
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
_LOOK_EVERY_S = 1.0
_KILL_FOR_S = 4.0  # what still lives then cannot be killed: it hangs in the kernel, or belongs to another user


def main(lifeline: int) -> None:
    """Serve calls until the parent closes its pipe or dies.

    Args:
        lifeline: the end of a pipe for reading; see `_become_worker_of_a_keeper`.
    """
    _become_worker_of_a_keeper(lifeline)
    requests, responses = _private_pipes()
    messages.connect_clock(lambda runs: _send(responses, ("clock", runs)))
    with contextlib.suppress(EOFError, BrokenPipeError):
        error = _set_up(cast(messages.Settings, messages.read(requests)))
        _send(responses, ("ready", error))
        _serve(requests, responses)
    # No clean-up of what rewards imported: a thread that one of them left running must not keep the process.
    sys.stderr.flush()
    os._exit(0)


# ------------------------------------------------------------------------------------------------------------ the keeper


def _become_worker_of_a_keeper(lifeline: int) -> None:
    """Return in a forked child, the worker; the calling process becomes its keeper and never returns.

    Args:
        lifeline: when something arrives there, or nobody is left to write to it, the worker ends.
    """
    trainer, wake = os.getppid(), _wake_by_signals()
    if _LINUX:
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)  # before the fork, so that no orphan escapes
    keeper = os.getpid()
    worker = os.fork()
    if worker == 0:
        _leave_to(keeper)
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
    """Hear of children that end, and of nothing else; return the file descriptor to poll for that."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    os.set_blocking(reading, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, *_SIGNALS_OF_THE_JOB):
        signal.signal(number, _ignore)
    return reading


def _ignore(number: int, frame: FrameType | None) -> None:
    """Do nothing. Unlike SIG_IGN, a handler is not inherited by programs that rewards start."""


def _leave_to(keeper: int) -> None:
    """Make this forked child a worker, which keeps the keeper's handlers for the signals of the job."""
    os.setpgid(0, 0)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.register_at_fork(after_in_child=_default_signals)
    if _LINUX:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != keeper:  # it ended before it could have been noticed
            os._exit(1)


def _default_signals() -> None:
    for number in _SIGNALS_OF_THE_JOB:
        signal.signal(number, signal.SIG_DFL)


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _wait(worker: int, trainer: int, lifeline: int, wake: int) -> int | None:
    """Return the wait status that the worker ended with; None if it is to be ended."""
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
    """End as the worker did, for the trainer to see: by the same signal or with the same exit status."""
    number = signal.SIGKILL if status is None else os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
    if number is not None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the worker's core is enough
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.WEXITSTATUS(status or 0))


# ------------------------------------------------------------------------------------------------------------ the worker


def _private_pipes() -> tuple[BinaryIO, int]:
    """Keep the protocol's pipes to ourselves: a reward's ``print`` goes to stderr, and its ``input`` finds nothing."""
    requests, responses = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return os.fdopen(requests, "rb"), responses


def _set_up(settings: messages.Settings) -> str | None:
    """Apply the parent's settings; return the traceback of one that failed."""
    sys.path[:] = settings["sys_path"]
    try:
        if settings["memory_limit"] is not None:
            _limit_memory(settings["memory_limit"])
        for function, arguments in settings["setup"]:
            resolve(function)(**arguments)
    except BaseException:
        return traceback.format_exc()
    tally.drain()
    return None


def _limit_memory(wanted: int) -> None:
    """Limit address space in bytes, where this process is not limited to less already."""
    present = [limit for limit in resource.getrlimit(resource.RLIMIT_AS) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min([wanted, *present]),) * 2)


def _serve(requests: BinaryIO, responses: int) -> None:
    functions: dict[int, calls.Loaded] = {}
    while True:
        message = cast(messages.Asked, messages.read(requests))
        if message[0] == "define":
            _, key, pickled = message
            functions[key] = calls.load(pickled)
            tally.drain()
            _send(responses, ("defined", key))
        elif message[0] == "together":
            _, chunk, in_flight = message
            calls.call_together(functions, chunk, in_flight, lambda message: _send(responses, message))
        else:
            for index, key, arguments in message[1]:
                _send(responses, (index, *calls.call(functions[key], arguments), tally.drain()))


def _send(responses: int, message: messages.Answer) -> None:
    rest = memoryview(messages.pack(message))
    while rest:
        rest = rest[os.write(responses, rest) :]


if __name__ == "__main__":
    main(int(sys.argv[1]))

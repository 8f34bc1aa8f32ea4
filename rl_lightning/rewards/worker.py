"""The process in which reward functions run: ``python -m rl_lightning.rewards.worker``.

Started and spoken to by :class:`rl_lightning.rewards.workers.WorkerPool`; not for use by hand. Messages from the parent
(see :mod:`rl_lightning.rewards.frames`):

- first, a dict: ``sys_path``, ``memory_limit`` (bytes or None), ``setup`` (a list of ``(function, arguments)``);
- ``("define", key, pickled function)``: a function, sent once;
- ``("run", [(index, key, pickled arguments), ...])``: calls, answered one by one, in order.

Messages to the parent: ``("ready", setup error or None)`` once, then ``(index, kind, pickled value,
error, counts)`` a call. After the kind ``memory`` the parent should end this process, which may keep what it ran out of
memory with.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any, BinaryIO, SupportsFloat

from rl_lightning.rewards import frames, tally
from rl_lightning.rewards.resolve import resolve

_PLAIN = (bool, int, float, str, bytes, type(None))
_LARGEST_VALUE, _LONGEST_ERROR = 1 << 16, 1 << 14  # bytes, characters; the parent holds one of each a sample


def main(lifeline: int) -> None:
    """Serve calls until the parent closes its pipe or dies."""
    _die_with_parent(lifeline)
    # An interrupt from the keyboard is the parent's to handle; it ends this process by closing the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests, responses = _private_pipes()
    with contextlib.suppress(EOFError, BrokenPipeError):
        error = _set_up(frames.read(requests))
        _send(responses, ("ready", error))
        _serve(requests, responses)
    # No clean-up of what rewards imported: a thread that one of them left running must not keep the process.
    sys.stderr.flush()
    os._exit(0)


def _die_with_parent(lifeline: int) -> None:
    """Let the kernel end this process when the other end of the lifeline pipe closes.

    End-of-file on stdin is seen only between calls, a watching thread needs the interpreter lock, which a long
    computation in C keeps, and PR_SET_PDEATHSIG follows the parent's *thread*. A signal on the pipe needs none of
    these.
    """
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC | os.O_NONBLOCK)
    os.set_inheritable(lifeline, False)
    with contextlib.suppress(BlockingIOError):
        if os.read(lifeline, 1) == b"":  # the parent died before the signal was armed
            os._exit(0)


def _private_pipes() -> tuple[BinaryIO, int]:
    """Keep the protocol's pipes to ourselves: a reward's ``print`` goes to stderr, and its ``input`` finds nothing."""
    requests, responses = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return os.fdopen(requests, "rb"), responses


def _set_up(settings: dict[str, Any]) -> str | None:
    """Apply the parent's settings; return the traceback of a setup call that failed."""
    sys.path[:] = settings["sys_path"]
    if settings["memory_limit"] is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (settings["memory_limit"],) * 2)
    try:
        for function, arguments in settings["setup"]:
            resolve(function)(**arguments)
    except BaseException:
        return traceback.format_exc()
    tally.drain()
    return None


def _serve(requests: BinaryIO, responses: int) -> None:
    functions: dict[int, bytes | Callable[..., Any]] = {}
    while True:
        message = frames.read(requests)
        if message[0] == "define":
            functions[message[1]] = message[2]
            continue
        for index, key, arguments in message[1]:
            _send(responses, (index, *_call(functions, key, arguments), tally.drain()))


def _call(
    functions: dict[int, bytes | Callable[..., Any]], key: int, arguments: bytes
) -> tuple[str, bytes, str | None]:
    """Call a function and pickle its value; what it raises, ``SystemExit`` included, is that one call's failure."""
    kind = "raised"
    try:
        function = functions[key]
        if isinstance(function, bytes):
            loaded = pickle.loads(function)
            function = functions[key] = resolve(loaded) if isinstance(loaded, str) else loaded
        value = pickle.dumps(_plain(function(**pickle.loads(arguments))))
        if len(value) > _LARGEST_VALUE:
            raise ValueError(f"it returned {len(value)} bytes, more than {_LARGEST_VALUE}")
        return "ok", value, None
    except MemoryError:
        kind, error = "memory", traceback.format_exc()
    except BaseException:
        error = traceback.format_exc()
    return kind, b"", error[-_LONGEST_ERROR:]


def _plain(value: Any) -> Any:
    """Return a number for what can be one: to unpickle an object of any other class would run its code in the parent."""
    if type(value) is int:
        float(value)  # raises where the parent could not print it either
    if type(value) in _PLAIN:
        return value
    if isinstance(value, SupportsFloat):
        return float(value)
    raise TypeError(f"it returned an object of class {type(value).__name__}, not a number")


def _send(responses: int, message: Any) -> None:
    rest = memoryview(frames.pack(message))
    while rest:
        rest = rest[os.write(responses, rest) :]


if __name__ == "__main__":
    main(int(sys.argv[1]))

"""The process in which reward functions run: ``python -m rl_lightning.rewards.worker``.

Started and spoken to by :class:`rl_lightning.rewards.workers.WorkerPool`; not for use by hand. Messages from the parent
(see :mod:`rl_lightning.rewards.frames`):

- first, a dict: ``sys_path``, ``memory_limit`` (bytes or None), ``setup`` (a list of ``(function, arguments)``);
- ``("define", key, pickled function)``: a function, sent once and loaded at once, which may import its module;
- ``("run", [(index, key, pickled arguments), ...])``: calls, answered one by one, in order.

Messages to the parent: ``("ready", setup error or None)`` once, ``("defined", key)`` when a function is loaded, or cannot
be, then ``(index, kind, pickled value, error, counts)`` a call; in between ``("clock", runs)`` to stop the clock and let it
run again. After the kind ``memory`` the parent should end this
process, which may keep what it ran out of memory with.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import resource
import sys
import traceback
from collections.abc import Callable
from typing import Any, BinaryIO, SupportsFloat

from rl_lightning.rewards import clock, frames, keeper, tally
from rl_lightning.rewards.resolve import resolve

_PLAIN = (bool, int, float, str, bytes, type(None))
_LARGEST_VALUE, _LONGEST_ERROR = 1 << 16, 1 << 14  # bytes, characters; the parent holds one of each a sample


def main(lifeline: int) -> None:
    """Serve calls until the parent closes its pipe or dies."""
    keeper.keep(lifeline)
    requests, responses = _private_pipes()
    clock.connect(lambda runs: _send(responses, ("clock", runs)))
    with contextlib.suppress(EOFError, BrokenPipeError):
        error = _set_up(frames.read(requests))
        _send(responses, ("ready", error))
        _serve(requests, responses)
    # No clean-up of what rewards imported: a thread that one of them left running must not keep the process.
    sys.stderr.flush()
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
    functions: dict[int, Callable[..., Any] | str] = {}
    while True:
        message = frames.read(requests)
        if message[0] == "define":
            functions[message[1]] = _load(message[2])
            tally.drain()
            _send(responses, ("defined", message[1]))
            continue
        for index, key, arguments in message[1]:
            _send(responses, (index, *_call(functions[key], arguments), tally.drain()))


def _load(pickled: bytes) -> Callable[..., Any] | str:
    """Return a function, or the traceback of why there is none: then every call of it fails."""
    try:
        loaded = pickle.loads(pickled)
        function: Callable[..., Any] = resolve(loaded) if isinstance(loaded, str) else loaded
        return function
    except BaseException:
        return traceback.format_exc()[-_LONGEST_ERROR:]


def _call(function: Callable[..., Any] | str, arguments: bytes) -> tuple[str, bytes, str | None]:
    """Call a function and pickle its value; what it raises, ``SystemExit`` included, is that one call's failure."""
    if isinstance(function, str):
        return "raised", b"", function
    kind = "raised"
    try:
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

"""What a reward worker and its parent say to each other: length-prefixed pickles over two pipes.

The parent (:mod:`rl_lightning.rewards.process`) writes:

- first a dict: ``sys_path``, ``memory_limit`` (bytes or None), ``setup`` (a list of ``(function, arguments)``);
- ``("define", key, pickled function)``: a function, sent once and loaded at once, which may import its module;
- ``("run", [(index, key, pickled arguments), ...])``: calls, answered one by one, in order;
- ``("together", [(index, key, pickled arguments, seconds), ...], in flight)``: calls of coroutine functions, as many at a time,
  each with its own time limit, answered in the order in which they end.

The worker (:mod:`rl_lightning.rewards.worker`) writes:

- ``("ready", setup error or None)`` once;
- ``("defined", key)`` when a function is loaded, or cannot be;
- ``(index, kind, pickled value, error, what the call said)`` for each call. After the kind ``memory`` the parent should end the
  worker, which may keep what it ran out of memory with;
- ``("clock", runs)`` in between: the clock of the call stops, or runs again.
"""

from __future__ import annotations

import contextlib
import pickle
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import BinaryIO, Literal, TypedDict

from rl_lightning.rewards.tally import Said

_LENGTH = struct.Struct("<Q")


class Preparation(TypedDict):
    """What a worker does before its first call.

    Args:
        memory_limit: of its address space in bytes; None for no other than the system's.
        setup: dotted paths of functions, and their keyword arguments.
    """

    memory_limit: int | None
    setup: list[tuple[str, Mapping[str, object]]]


class Settings(Preparation):
    """The first message to a worker."""

    sys_path: list[str]


#: Place of a call, key of its function, pickled arguments; and its time limit in seconds.
Call = tuple[int, int, bytes]
TimedCall = tuple[int, int, bytes, float]
#: What the parent asks for after the settings.
Asked = (
    tuple[Literal["define"], int, bytes]
    | tuple[Literal["run"], list[Call]]
    | tuple[Literal["together"], list[TimedCall], int]
)
#: What a worker answers.
Answer = (
    tuple[Literal["ready"], str | None]
    | tuple[Literal["defined"], int]
    | tuple[Literal["clock"], bool]
    | tuple[int, str, bytes, str | None, Said]
)


def pack(message: object) -> bytes:
    """Return a message as bytes: eight bytes of length, then the pickle."""
    body = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(body)) + body


def unpack(buffer: bytearray) -> list[Answer]:
    """Remove the complete messages from the front of a buffer and return them; a partial one stays."""
    messages: list[Answer] = []
    start = 0
    while len(buffer) - start >= _LENGTH.size:
        (length,) = _LENGTH.unpack_from(buffer, start)
        end = start + _LENGTH.size + length
        if len(buffer) < end:
            break
        messages.append(pickle.loads(memoryview(buffer)[start + _LENGTH.size : end]))
        start = end
    del buffer[:start]
    return messages


def read(stream: BinaryIO) -> object:
    """Wait for one message.

    Raises:
        EOFError: if the other side closed the pipe.
    """
    header = stream.read(_LENGTH.size)
    if len(header) < _LENGTH.size:
        raise EOFError
    (length,) = _LENGTH.unpack(header)
    body = stream.read(length)
    if len(body) < length:
        raise EOFError
    return pickle.loads(body)


# ------------------------------------------------------------------------------------------------ the clock of a call

# It stands here and not in `worker`, which runs as `__main__`: a reward that imported it by its name would
# get a second copy, connected to nobody.


def _tell_nobody(runs: bool) -> None:
    """Outside of a reward worker no clock runs."""


_tell: Callable[[bool], None] = _tell_nobody


def connect_clock(tell: Callable[[bool], None]) -> None:
    """Say what to call with whether the clock runs: a reward worker sends that to its parent."""
    global _tell
    _tell = tell


@contextlib.contextmanager
def clock_stopped() -> Iterator[None]:
    """Stop the clock of the present call inside this: it waits for a process of its own to start.

    Outside of a reward worker this changes nothing.
    """
    _tell(False)
    try:
        yield
    finally:
        _tell(True)

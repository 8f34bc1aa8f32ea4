"""Calls of reward functions, as a worker makes them: one by one, or several coroutines at a time."""

from __future__ import annotations

import inspect
import pickle
import traceback
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, SupportsFloat

from rl_lightning.rewards import tally
from rl_lightning.rewards.messages import Answer, TimedCall
from rl_lightning.rewards.resolve import resolve

# Imported where coroutines are called: most workers never need asyncio, and without it they start in two thirds of the time.
if TYPE_CHECKING:
    import asyncio

#: A function, or the traceback of why there is none: then every call of it fails.
Loaded = Callable[..., object] | str
#: How a call ended, its pickled value, and the traceback if it has none.
Ended = tuple[str, bytes, str | None]

_PLAIN = (bool, int, float, str, bytes, type(None))
_LARGEST_VALUE, _LONGEST_ERROR = 1 << 16, 1 << 14  # bytes, characters; the parent holds one of each a call


def load(pickled: bytes) -> Loaded:
    """Return a function from its pickle or its pickled path."""
    try:
        loaded = pickle.loads(pickled)
        function: Callable[..., object] = resolve(loaded) if isinstance(loaded, str) else loaded
        return function
    except BaseException:
        return traceback.format_exc()[-_LONGEST_ERROR:]


def call(function: Loaded, arguments: bytes) -> Ended:
    """Call a function and pickle its value; what it raises, ``SystemExit`` included, is that one call's failure."""
    if isinstance(function, str):
        return "raised", b"", function
    try:
        value = function(**pickle.loads(arguments))
        if inspect.isawaitable(value):
            value = event_loop().run_until_complete(_finished(value))
        return _with_value(value)
    except BaseException as error:
        return _failed(error)


def call_together(
    functions: Mapping[int, Loaded],
    calls: Sequence[TimedCall],
    in_flight: int,
    send: Callable[[Answer], None],
) -> None:
    """Make calls of coroutine functions, several at a time, and send how each went as soon as it has ended.

    Args:
        functions: by key.
        calls: (index, key of the function, pickled arguments, time limit in seconds); they begin in this order.
        in_flight: calls at a time.
        send: sends a message to the parent.
    """
    event_loop().run_until_complete(_all(functions, calls, in_flight, send))


@cache
def event_loop() -> asyncio.AbstractEventLoop:
    """Return the event loop of this process: one for all calls, so that a function can keep its connections open."""
    import asyncio

    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    return loop


async def _finished(value: Awaitable[object]) -> object:
    return await value


async def _all(
    functions: Mapping[int, Loaded],
    calls: Sequence[TimedCall],
    in_flight: int,
    send: Callable[[Answer], None],
) -> None:
    import asyncio

    free = asyncio.Semaphore(in_flight)  # first come, first served

    async def one(index: int, key: int, arguments: bytes, limit_s: float) -> None:
        async with free:
            tally.begin()
            ended = await _in_time(functions[key], arguments, limit_s)
            send((index, *ended, tally.drain()))

    await asyncio.gather(*(one(*each) for each in calls))


async def _in_time(function: Loaded, arguments: bytes, limit_s: float) -> Ended:
    """Call a function, and leave it to itself once it has taken too long: it may refuse to be cancelled."""
    import asyncio

    task = asyncio.ensure_future(_called(function, arguments))
    done, _ = await asyncio.wait({task}, timeout=limit_s)
    if done:
        return task.result()
    task.cancel()
    return "timeout", b"", f"The call took longer than {limit_s:g} s"


async def _called(function: Loaded, arguments: bytes) -> Ended:
    if isinstance(function, str):
        return "raised", b"", function
    try:
        value = function(**pickle.loads(arguments))
        return _with_value(await value if inspect.isawaitable(value) else value)
    except BaseException as error:  # a SystemExit that left this task would end the others too
        return _failed(error)


def _with_value(value: object) -> Ended:
    pickled = pickle.dumps(_plain(value))
    if len(pickled) > _LARGEST_VALUE:
        raise ValueError(f"it returned {len(pickled)} bytes, more than {_LARGEST_VALUE}")
    return "ok", pickled, None


def _failed(error: BaseException) -> Ended:
    kind = "memory" if isinstance(error, MemoryError) else "raised"
    return kind, b"", traceback.format_exc()[-_LONGEST_ERROR:]


def _plain(value: object, depth: int = 2) -> object:
    """Return numbers for what can be some: to unpickle an object of any other class would run its code in the parent.

    Args:
        value: a number, a short text or None; a dict of these, or anything that can be gone through, such as a list of them.
        depth: how many such containers may be in each other.
    """
    if type(value) is int:
        float(value)  # raises where the parent could not print it either
    if type(value) in _PLAIN:
        return value
    if depth and isinstance(value, Mapping):
        return {str(name): _plain(part, depth - 1) for name, part in value.items()}
    if isinstance(value, SupportsFloat):
        try:
            return float(value)
        except Exception:  # an array of several numbers, say
            if not isinstance(value, Iterable):
                raise
    if depth and isinstance(value, Iterable):
        return [_plain(part, depth - 1) for part in value]
    raise TypeError(f"it returned an object of class {type(value).__name__}, not a number")

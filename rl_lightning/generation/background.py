"""Calls in daemon threads, so that a call that hangs holds up neither an exception nor the end of the process."""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

Value = TypeVar("Value")

#: Seconds that one wait for an action takes at most, so that a signal is handled meanwhile.
_LOOK_EVERY_S = 0.1


@contextlib.contextmanager
def in_background(
    call: Callable[[int], Value], count: int, threads: int
) -> Iterator[Callable[[float], dict[int, Value]]]:
    """Call a function with 0 to count - 1 in threads. When the context ends, no further call begins.

    Unlike those of `concurrent.futures`, the threads are daemons: one that waits for a server does not keep the process alive.

    Args:
        call: the function.
        count: number of calls.
        threads: calls at a time.

    Yields:
        A function of a time in seconds: it waits that long for the next call to end, and returns {number: value}, or {} if none
        has ended. It raises what the call raised.
    """
    numbers, ended = itertools.count(), queue.SimpleQueue[tuple[int, Value | None, BaseException | None]]()
    over = threading.Event()

    def work() -> None:
        while (number := next(numbers)) < count and not over.is_set():
            try:
                ended.put((number, call(number), None))
            except BaseException as error:
                ended.put((number, None, error))

    def collect(patience_s: float) -> dict[int, Value]:
        try:
            number, value, error = ended.get(timeout=patience_s)
        except queue.Empty:
            return {}
        if error is not None:
            raise error
        return {number: value}  # type: ignore[dict-item]

    for _ in range(min(threads, count)):
        threading.Thread(target=work, name="requests", daemon=True).start()
    try:
        yield collect
    finally:
        over.set()


def at_once(*actions: Callable[[], Value]) -> list[Value]:
    """Do actions side by side, each in a thread; return what they return.

    Raises:
        BaseException: what the first of them raises, at once. The others are left behind: they may wait for it for ever.
    """
    found: dict[int, Value] = {}
    with in_background(lambda number: actions[number](), len(actions), len(actions)) as ended:
        while len(found) < len(actions):
            found |= ended(_LOOK_EVERY_S)
    return [found[number] for number in range(len(actions))]

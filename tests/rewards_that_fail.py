"""Rewards with faults, for tests; named by their dotted paths."""

import os
import sys
import time


def every_third(response, metadata):
    """Raise, hang or return no number for some responses, by their length; else the length."""
    kind = len(response) % 6
    if kind == 0:
        raise RuntimeError("no reward for you")
    if kind == 1:
        return float("nan")
    if kind == 2 and len(response) == 2:
        time.sleep(60)
    return float(len(response))


def always(response):
    """Raise."""
    raise RuntimeError("the grader is out of order")


_calls = 0
_hoard = []


class Bomb:
    """Ends whatever process unpickles it."""

    def __reduce__(self):
        return os._exit, (9,)


def every_fourth(response, how):
    """Do something terrible at each fourth call of this process; else return the length in characters.

    Args:
        how: what, a key of `TERRIBLE`.
    """
    global _calls
    _calls += 1
    return TERRIBLE[how]() if _calls % 4 == 0 else float(len(response))


def _raise():
    raise RuntimeError("no reward for you")


def _long_error():
    raise RuntimeError("x" * 10_000_000)


def _loop():
    while True:
        pass


def _hoard_memory():
    while True:
        _hoard.append(bytearray(1 << 26))


def _recurse():
    return _recurse()


def _print():
    print("x" * 1_000_000)
    return 1.0


TERRIBLE = {
    "raise": _raise, "long error": _long_error, "loop": _loop, "sleep": lambda: time.sleep(1000), "memory": _hoard_memory,
    "nan": lambda: float("nan"), "inf": lambda: float("-inf"), "none": lambda: None, "text": lambda: "1.0",
    "huge text": lambda: "x" * 10_000_000, "huge number": lambda: 10**5000, "die": lambda: os._exit(3),
    "segfault": lambda: os.kill(os.getpid(), 11), "recursion": _recurse, "pickle bomb": Bomb, "print": _print,
    "exit": lambda: sys.exit(3),
}  # fmt: skip

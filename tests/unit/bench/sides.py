"""Workers that do next to nothing."""

import threading
import time

from examples.bench.turns import turns
from examples.bench.work import Work


def counts(work: Work) -> None:
    """Count 10 tokens in the first step, 11 in the second, and so on, and talk on the standard output."""
    for step in range(work.steps):
        turns().wait()
        print("not a line of the protocol")
        turns().tokens += 10 + step
    turns().wait()


def fails(work: Work) -> None:
    """Fail in the first step."""
    turns().wait()
    raise RuntimeError("the reason")


def spins(work: Work) -> None:
    """Keep a core busy from here on, also while nobody asks for a step."""

    def spin() -> None:
        while True:
            pass

    threading.Thread(target=spin, daemon=True).start()
    for _ in range(work.steps):
        turns().wait()
        until = time.process_time() + 0.1
        while time.process_time() < until:
            time.sleep(0.01)
    turns().wait()

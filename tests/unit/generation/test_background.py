"""Calls in threads that nothing waits for."""

import threading
import time

import pytest

from rl_lightning.generation.background import in_background
from tests.processes import Warm


def test_values_come_as_calls_end_under_their_numbers():
    wait = threading.Event()

    def call(number):
        if number == 0:
            wait.wait(30)
        return number * number

    found = {}
    with in_background(call, count=5, threads=2) as ended:
        while len(found) < 4:
            found |= ended(0.05)
        assert found == {1: 1, 2: 4, 3: 9, 4: 16} and ended(0.01) == {}
        wait.set()
        while 0 not in found:
            found |= ended(0.05)
    assert found[0] == 0


def test_what_a_call_raises_ends_the_others():
    begun = []

    def call(number):
        begun.append(number)
        raise ValueError(f"call {number}")

    with pytest.raises(ValueError, match="call 0"), in_background(call, count=1, threads=4) as ended:
        ended(30)
    over = threading.Event()

    def slow(number):
        begun.append(number)
        over.wait(30)

    del begun[:]
    with pytest.raises(KeyboardInterrupt), in_background(slow, count=100, threads=2):
        while len(begun) < 2:
            time.sleep(0.01)
        raise KeyboardInterrupt
    over.set()
    for thread in [thread for thread in threading.enumerate() if thread.name == "requests"]:
        thread.join(30)
    assert len(begun) == 2


def calls_that_never_end():
    with in_background(lambda number: time.sleep(1000), count=2, threads=2) as ended:
        ended(0.01)


def test_the_end_of_the_process_waits_for_no_call(tmp_path):
    assert Warm(calls_that_never_end, output=tmp_path / "log").wait(300) == 0

"""The simulated device, in a process of its own: what it does to torch is for good."""

import pytest

from rl_lightning.models import roofline
from tests.ranks import Ranks
from tests.simulated_gpu.device import MISSING, build, install


def prepare(rank: int, meeting: str) -> None:
    """Make the device in the process that serves the tests."""
    install()
    roofline._ELSEWHERE = (64, 1 << 16)  # what is multiplied to measure a GPU takes minutes here


@pytest.fixture(scope="session")
def gpu(tmp_path_factory):
    """Calls a function in a process that has a simulated `cuda:0`, and returns what it returned."""
    if MISSING:
        pytest.skip(f"no simulated GPU: {MISSING}")
    build()
    one = Ranks(tmp_path_factory.mktemp("gpu"), size=1, prepare=prepare)
    yield lambda check, *arguments, **named: one(check, *arguments, **named)[0]
    one.close()

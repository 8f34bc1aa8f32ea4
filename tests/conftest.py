"""Set-up shared by all tests."""

import os

# Waiting threads that spin would starve each other on a machine with few cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch


@pytest.fixture(autouse=True)
def _same_seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_policy(tmp_path_factory):
    """A directory with a random model of a few thousand parameters."""
    from tests.tiny import save_tiny_policy

    return save_tiny_policy(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def ranks(tmp_path_factory):
    """Calls a function on two gloo ranks, the same two for all tests of a worker: `tests.ranks.Ranks`."""
    from tests.ranks import Ranks

    pair = Ranks(tmp_path_factory.mktemp("ranks"))
    yield pair
    pair.close()

"""A run that trains an adapter is the same on one process and on two, whole or sharded."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.checks import gradient_difference
from tests.invariants.lora_ranks import RUNS
from tests.invariants.spread import fit, result


@pytest.fixture(scope="module", params=["ddp", "fsdp2"])
def two(request, tiny_policy, tmp_path_factory):
    """The directory of the runs on two gloo processes."""
    directory = tmp_path_factory.mktemp("two")
    script = str(Path(__file__).with_name("lora_ranks.py"))
    done = subprocess.run(
        [sys.executable, script, request.param, tiny_policy, str(directory), *RUNS],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return directory


@pytest.mark.parametrize("name", RUNS)
def test_two_ranks_train_as_one_process_does(name, two, tiny_policy, tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    whole = result(*fit(name, tiny_policy, tmp_path))
    torch.set_num_threads(threads)
    spread = torch.load(two / f"{name}.pt", weights_only=True)
    assert len(spread["steps"]) == len(whole["steps"]) >= 6
    for actual, expected in zip(spread["steps"], whole["steps"], strict=True):
        heads = {"classifier.score.weight", "critic.head.weight", "critic.head.bias"}
        assert all(".lora_" in key or key in heads for key in actual)
        assert gradient_difference(actual, expected) < 1e-12
    assert gradient_difference(spread["weights"], whole["weights"]) < 1e-12
    assert spread["logged"] == pytest.approx(whole["logged"], rel=1e-6, abs=1e-9)

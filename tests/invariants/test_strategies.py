"""A run is the same on one process and on two, whole or sharded: every gradient, every logged number, the weights."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.checks import gradient_difference
from tests.invariants.spread import RUNS, STRATEGIES, fit, result

SHARDED = [name for name in STRATEGIES if name.startswith("fsdp")]


def on_two_ranks(strategy, policy, directory, *arguments):
    """Run the script, and fail with what it said."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("spread.py")), strategy, policy, str(directory), *arguments],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module", params=["ddp", "fsdp2"])
def two(request, tiny_policy, tmp_path_factory):
    """Every algorithm on two gloo processes, and the strategy."""
    directory = tmp_path_factory.mktemp("two")
    on_two_ranks(request.param, tiny_policy, directory)
    return request.param, directory


@pytest.fixture(scope="module")
def one(tiny_policy, tmp_path_factory):
    """Every algorithm on one process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    runs = {name: result(*fit(name, tiny_policy, tmp_path_factory.mktemp("one"))) for name in RUNS}
    torch.set_num_threads(threads)
    return runs


@pytest.mark.parametrize("name", RUNS)
def test_two_ranks_train_as_one_process_does(name, two, one):
    strategy, directory = two
    spread, whole = torch.load(directory / f"{name}.pt", weights_only=True), one[name]
    assert len(spread["steps"]) == len(whole["steps"]) >= 6
    for actual, expected in zip(spread["steps"], whole["steps"], strict=True):
        assert gradient_difference(actual, expected) < 1e-12
    assert gradient_difference(spread["weights"], whole["weights"]) < 1e-12
    assert spread["logged"] == pytest.approx(whole["logged"], rel=1e-6, abs=1e-9)
    # What one rank holds of every tensor: nearly half, but for tensors of one row.
    share = sum(spread["shares"]) / len(spread["shares"])
    assert share == 1 if strategy == "ddp" else 0.5 <= share < 0.55


def test_runs_of_two_algorithms_differ(one):
    """The comparison above can fail."""
    assert gradient_difference(one["grpo"]["steps"][0], one["rft online"]["steps"][0]) > 1e-3
    assert one["grpo"]["logged"] != pytest.approx(one["rft online"]["logged"], rel=1e-6)

"""A run that trains an adapter is the same on one process and on two, whole or sharded."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rl_lightning.models import LoadOptions, PolicyFiles
from tests.adapted import logits
from tests.checks import assert_same, gradient_difference
from tests.invariants.lora_ranks import RUNS, fit


@pytest.fixture(scope="module", params=["ddp", "fsdp2", "fsdp1"])
def two(request, tiny_policy, tmp_path_factory):
    """The directory of the runs on two gloo processes, and how closely they agree with one: `fsdp1` computes in float32."""
    directory = tmp_path_factory.mktemp("two")
    script = str(Path(__file__).with_name("lora_ranks.py"))
    done = subprocess.run(
        [sys.executable, script, request.param, tiny_policy, str(directory)],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return directory, 1e-5 if request.param == "fsdp1" else 1e-12


@pytest.mark.parametrize("name", RUNS)
def test_two_ranks_train_as_one_process_does(name, two, tiny_policy, tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    whole = fit(name, tiny_policy, tmp_path)
    torch.set_num_threads(threads)
    directory, tolerance = two
    spread = torch.load(directory / f"{name}.pt", weights_only=True)
    assert len(spread["steps"]) == len(whole["steps"]) >= 6
    for actual, expected in zip(spread["steps"], whole["steps"], strict=True):
        heads = {"classifier.score.weight", "critic.head.weight", "critic.head.bias"}
        assert all(".lora_" in key or key in heads for key in actual)
        assert gradient_difference(actual, expected) < tolerance
    assert gradient_difference(spread["weights"], whole["weights"]) < tolerance
    assert spread["logged"] == pytest.approx(whole["logged"], rel=max(1e-6, 10 * tolerance), abs=max(1e-9, tolerance))
    for kind in ("merged", "alone"):
        files = {path.name for path in (directory / name / kind).iterdir()}
        assert files == {path.name for path in (tmp_path / kind).iterdir()}
    if name == "grpo, lora":
        options = LoadOptions("float64")
        models = [
            PolicyFiles(str(place / kind), options).load()
            for place in (directory / name, tmp_path)
            for kind in ("merged", "alone")
        ]
        outputs = [logits(model) for model in (*models, PolicyFiles(tiny_policy, options).load())]
        for output in outputs[:-1]:
            assert_same(output, outputs[2], 10 * tolerance)
        assert float((outputs[-1] - outputs[2]).abs().max()) > 1e-2

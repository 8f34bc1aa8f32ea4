"""A run is the same on one process and on two, whole or sharded: every gradient, every logged number, the weights."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rl_lightning.errors import UserError
from tests.checks import gradient_difference
from tests.invariants.spread import RUNS, STRATEGIES, fit, result
from tests.invariants.spread_precision import VARIANTS
from tests.invariants.spread_resume import STOPS
from tests.invariants.spread_stop import CASES

#: Strategy → largest relative difference of the first gradient, and of what comes after it. `FSDPStrategy` computes in
#: float32, and AdamW divides small differences by small gradients.
TOLERANCES = {"ddp": (1e-12, 1e-12), "fsdp2": (1e-12, 1e-12), "fsdp1": (1e-6, 1e-3)}


def on_two_ranks(script, *arguments):
    """Run a script, and fail with what it said."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name(script)), *map(str, arguments)],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module", params=TOLERANCES)
def two(request, tiny_policy, tmp_path_factory):
    """Every algorithm on two gloo processes, and the strategy."""
    directory = tmp_path_factory.mktemp("two")
    on_two_ranks("spread.py", request.param, tiny_policy, directory)
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
    at_first, later = TOLERANCES[strategy]
    assert len(spread["steps"]) == len(whole["steps"]) >= 6
    for number, (actual, expected) in enumerate(zip(spread["steps"], whole["steps"], strict=True)):
        assert gradient_difference(actual, expected) < (later if number else at_first)
    assert gradient_difference(spread["weights"], whole["weights"]) < later
    assert spread["logged"] == pytest.approx(whole["logged"], rel=max(later, 1e-6), abs=max(later, 1e-7))
    # What one rank holds of every tensor: nearly half, but for tensors of one row. Those of FSDP1 have no such parts.
    share = sum(spread["shares"]) / len(spread["shares"])
    assert 0.5 <= share < 0.55 if strategy == "fsdp2" else share == 1


def test_runs_of_two_algorithms_differ(one):
    """The comparison above can fail."""
    assert gradient_difference(one["grpo"]["steps"][0], one["rft online"]["steps"][0]) > 1e-3
    assert one["grpo"]["logged"] != pytest.approx(one["rft online"]["logged"], rel=1e-6)


@pytest.fixture(scope="module", params=[name for name in STRATEGIES if name != "ddp"])
def stopped(request, tiny_policy, tmp_path_factory):
    """Sharded runs that were stopped and gone on with, and the strategy."""
    directory = tmp_path_factory.mktemp("stopped")
    on_two_ranks("spread_resume.py", request.param, tiny_policy, directory)
    return request.param, directory


@pytest.mark.parametrize("name", STOPS)
def test_a_sharded_run_goes_on_to_the_last_bit(name, stopped):
    place = stopped[1] / name
    whole = torch.load(place / "whole.pt", weights_only=True)
    for stop in STOPS[name]:
        resumed = torch.load(place / f"from-{stop}.pt", weights_only=True)
        for actual, expected in zip(resumed["steps"], whole["steps"][stop:], strict=True):
            assert all(torch.equal(actual[key], value) for key, value in expected.items())
        assert all(torch.equal(resumed["weights"][key], value) for key, value in whole["weights"].items())
        # What is known of a table of pairs, and of the responses that it was made of, is logged once, when training begins.
        of_the_table = ("pairs/", "rollout/", "reward_failures/") if name == "dpo" else ()
        once = {key for key in whole["logged"] if key.startswith(of_the_table)}
        assert resumed["logged"] == {key: value for key, value in whole["logged"].items() if key not in once}


@pytest.mark.parametrize("name", STOPS)
def test_a_sharded_policy_is_exported_whole(name, stopped):
    place = stopped[1] / name
    exported = load_file(place / "hf" / "model.safetensors")
    whole = torch.load(place / "whole.pt", weights_only=True)["weights"]
    assert len(exported) > 10 and all(torch.equal(value, whole[f"policy.{key}"]) for key, value in exported.items())
    assert json.loads((place / "hf" / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


@pytest.mark.parametrize("name", STOPS)
def test_one_process_goes_on_with_a_sharded_run(name, stopped, one, tiny_policy, tmp_path):
    """From the end of an epoch; within one, the ranks have parts of it."""
    strategy, directory = stopped
    if strategy != "fsdp2":
        pytest.skip("a checkpoint of shares is for as many ranks")
    kept = directory / name / "kept"
    *_, watch = seen = fit(name, tiny_policy, tmp_path, ckpt_path=kept / "epoch=0.ckpt")
    assert gradient_difference(result(*seen)["weights"], one[name]["weights"]) < 1e-12
    assert len(watch.steps) == len(one[name]["steps"]) * 2 // 3
    with pytest.raises(UserError, match="on 2 rank"):
        fit(name, tiny_policy, tmp_path, ckpt_path=kept / "step=1.ckpt")
    last = len(one[name]["steps"]) // 3
    if name != "dpo":  # its epochs have as many steps, with as many microbatches
        with pytest.raises(UserError, match="before the epoch had ended"):
            fit(name, tiny_policy, tmp_path, ckpt_path=kept / f"step={last}.ckpt")


def test_a_sharded_run_in_other_precisions(tiny_policy, tmp_path):
    """The first ratio of each rollout is 1 in all of them; what is recomputed is the same to the last bit."""
    on_two_ranks("spread_precision.py", tiny_policy, tmp_path)
    runs = {name: torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in VARIANTS}
    exact = runs["float32"]
    for name, run in runs.items():
        assert [bool((ratios == 1).all()) for ratios in run["ratios"]] == [True, False, True, False], name
        assert run["dtype"] == ("torch.bfloat16" if name == "bf16-true" else "torch.float32")
        difference = gradient_difference(run["steps"][0], exact["steps"][0])
        if name in ("float32", "recomputed"):
            assert difference == 0 == gradient_difference(run["weights"], exact["weights"])
        else:
            assert 1e-4 < difference < 0.2, name


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_signal_to_one_rank_stops_all_and_costs_nothing(strategy, tiny_policy, tmp_path):
    """They agree on the end at the next boundary; none of them waits for the others forever."""
    on_two_ranks("spread_stop.py", strategy, tiny_policy, tmp_path)
    for name, *_ in CASES:
        runs = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        whole, resumed = runs["whole"], runs["resumed"]
        for actual, expected in zip(resumed["steps"], whole["steps"][-len(resumed["steps"]) :], strict=True):
            assert all(torch.equal(actual[key], value) for key, value in expected.items())
        assert all(torch.equal(resumed["weights"][key], value) for key, value in whole["weights"].items())
        assert resumed["logged"] == whole["logged"]

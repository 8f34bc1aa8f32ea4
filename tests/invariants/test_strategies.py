"""A run is the same on one process and on two, whole or sharded: every gradient, every logged number, the weights."""

import json

import pytest
import torch
from safetensors.torch import load_file

from rl_lightning.errors import UserError
from tests.checks import cases, gradient_difference
from tests.invariants.spread import (
    RUNS,
    STRATEGIES,
    VARIANTS,
    Tell,
    fit,
    kept,
    on_two,
    result,
    resumed,
    stopped,
    variant,
)

#: Strategy → largest relative difference of the first gradient, and of what comes after it. `FSDPStrategy` computes in
#: float32, and AdamW divides small differences by small gradients.
TOLERANCES = {"ddp": (1e-12, 1e-12), "fsdp2": (1e-12, 1e-12), "fsdp1": (1e-6, 1e-3)}
#: Strategy → the algorithms that `make test` runs under it: one, and that with two models, which can be sharded. `test_metric_ranks`
#: compares every number of the others under DDP, `test_lora_ranks` shards a classifier. All others are slow.
SOON = {"ddp": ("grpo",), "fsdp2": ("ppo",), "fsdp1": ()}
#: Name of the run → optimizer steps after which it is stopped: within an epoch, between epochs over one rollout, at an end. All
#: of them under FSDP2, the first under other ways to share.
STOPS = {"ppo": (3, 6), "dapo": (4,), "dpo": (1,)}
#: Steps, the first and the last of an epoch, with which one process cannot go on.
REFUSED = (1, 4)
SHARDED = [name for name in STRATEGIES if name != "ddp"]
#: Name of the run → moment, rank and epoch of a signal.
SIGNALS = {
    "grpo": ("sampling", 1, 1),
    "sft": ("validation", 0, 0),
    "dapo": ("backward", 0, 0),
    "ppo": ("backward", 1, 0),
}


#: Runs that are compared with their own rest only.
SHORT = {("fsdp2, shares", "dpo"): {"max_epochs": 1}}
#: Those that `make test` goes on with: within an epoch, and from shares.
GOES_ON = (("fsdp2", "ppo", 3), ("fsdp2, shares", "dpo", 1))


def stops(strategy, name):
    return STOPS[name] if strategy == "fsdp2" else STOPS[name][:1]


@pytest.fixture(scope="module")
def whole(ranks, tiny_policy, tmp_path_factory):
    """An algorithm's run on two ranks under a strategy, from beginning to end, and where it keeps checkpoints, if any are wanted."""
    runs = {}

    def of(strategy, name):
        if (strategy, name) not in runs:
            place = tmp_path_factory.mktemp("whole")
            of_steps = strategy in SHARDED and name in STOPS
            train, more = (
                (kept, [stops(strategy, name) + (REFUSED if strategy == "fsdp2" else ())]) if of_steps else (on_two, [])
            )
            runs[strategy, name] = (
                ranks(train, name, tiny_policy, place, strategy, *more, **SHORT.get((strategy, name), {}))[0],
                place,
            )
        return runs[strategy, name]

    return of


@pytest.fixture(scope="module")
def one(tiny_policy, tmp_path_factory):
    """An algorithm's run on one process."""
    runs = {}

    def of(name):
        if name not in runs:
            runs[name] = result(*fit(name, tiny_policy, tmp_path_factory.mktemp("one")))
        return runs[name]

    return of


@pytest.mark.parametrize(
    ("strategy", "name"), cases(TOLERANCES, RUNS, soon=lambda strategy, name: name in SOON[strategy])
)
def test_two_ranks_train_as_one_process_does(strategy, name, whole, one):
    spread, alone = whole(strategy, name)[0], one(name)
    at_first, later = TOLERANCES[strategy]
    assert len(spread["steps"]) == len(alone["steps"]) >= 4
    for number, (actual, expected) in enumerate(zip(spread["steps"], alone["steps"], strict=True)):
        assert gradient_difference(actual, expected) < (later if number else at_first)
    assert gradient_difference(spread["weights"], alone["weights"]) < later
    assert spread["logged"] == pytest.approx(alone["logged"], rel=max(later, 1e-6), abs=max(later, 1e-7))
    # What one rank holds of every tensor: nearly half, but for tensors of one row. Those of FSDP1 have no such parts.
    share = sum(spread["shares"]) / len(spread["shares"])
    assert 0.5 <= share < 0.55 if strategy == "fsdp2" else share == 1


def test_runs_of_two_algorithms_differ(one):
    """The comparison above can fail."""
    assert gradient_difference(one("grpo")["steps"][0], one("sft")["steps"][0]) > 1e-3
    assert one("grpo")["logged"] != pytest.approx(one("sft")["logged"], rel=1e-6)


def same(rest, whole):
    """Hold that a run that goes on has the last steps of one that was never stopped, and its weights, to the last bit."""
    assert len(rest["steps"]) > 0
    for actual, expected in zip(rest["steps"], whole["steps"][-len(rest["steps"]) :], strict=True):
        assert all(torch.equal(actual[key], value) for key, value in expected.items())
    assert all(torch.equal(rest["weights"][key], value) for key, value in whole["weights"].items())


@pytest.mark.parametrize(
    ("strategy", "name", "stop"),
    [
        pytest.param(*one, marks=() if one in GOES_ON else pytest.mark.slow)
        for one in ((strategy, name, stop) for strategy in SHARDED for name in STOPS for stop in stops(strategy, name))
    ],
)
def test_a_sharded_run_goes_on_to_the_last_bit_and_is_exported_whole(strategy, name, stop, whole, ranks, tiny_policy):
    run, place = whole(strategy, name)
    checkpoint = place / "kept" / f"step={stop}.ckpt"
    rest, _ = ranks(resumed, name, tiny_policy, place, strategy, checkpoint, **SHORT.get((strategy, name), {}))
    assert len(rest["steps"]) == len(run["steps"]) - stop
    same(rest, run)
    # What is known of a table of pairs, and of the responses that it was made of, is logged once, when training begins.
    of_the_table = ("pairs/", "rollout/", "reward_failures/") if name == "dpo" else ()
    once = {key for key in run["logged"] if key.startswith(of_the_table)}
    expected = {key: value for key, value in run["logged"].items() if key not in once}
    if stop > len(run["steps"]) // 2:  # in the last rollout, of which what is known was logged before
        assert rest["logged"].items() <= expected.items() and rest["logged"].keys() >= {"train/loss", "val/pass@1"}
    else:
        assert rest["logged"] == expected
    exported, weights = load_file(place / "hf" / "model.safetensors"), run["weights"]
    assert len(exported) > 10 and all(torch.equal(value, weights[f"policy.{key}"]) for key, value in exported.items())
    assert json.loads((place / "hf" / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


@pytest.mark.parametrize("name", cases(STOPS, soon=lambda name: name == "ppo"))
def test_one_process_goes_on_with_a_sharded_run(name, whole, one, tiny_policy, tmp_path):
    """From the end of an epoch; within one, the ranks have parts of it."""
    checkpoints, steps = whole("fsdp2", name)[1] / "kept", one(name)["steps"]
    *_, watch = seen = fit(name, tiny_policy, tmp_path, ckpt_path=checkpoints / "epoch=0.ckpt")
    assert gradient_difference(result(*seen)["weights"], one(name)["weights"]) < 1e-12
    assert len(watch.steps) == len(steps) // 2
    with pytest.raises(UserError, match="on 2 rank"):
        fit(name, tiny_policy, tmp_path, ckpt_path=checkpoints / f"step={REFUSED[0]}.ckpt")
    if name != "dpo":  # its epochs have as many steps, with as many microbatches
        assert REFUSED[1] == len(steps) // 2
        with pytest.raises(UserError, match="before the epoch had ended"):
            fit(name, tiny_policy, tmp_path, ckpt_path=checkpoints / f"step={REFUSED[1]}.ckpt")


@pytest.mark.slow
def test_a_sharded_run_in_other_precisions(ranks, tiny_policy, tmp_path):
    """The first ratio of each rollout is 1 in all of them; what is recomputed is the same to the last bit."""
    runs = {name: ranks(variant, name, tiny_policy, tmp_path / name)[0] for name in VARIANTS}
    exact = runs["float32"]
    for name, run in runs.items():
        assert [bool((ratios == 1).all()) for ratios in run["ratios"]] == [True, False, True, False], name
        assert run["dtype"] == ("torch.bfloat16" if name == "bf16-true" else "torch.float32")
        difference = gradient_difference(run["steps"][0], exact["steps"][0])
        if name in ("float32", "recomputed"):
            assert difference == 0 == gradient_difference(run["weights"], exact["weights"])
        else:
            assert 1e-4 < difference < 0.2, name


@pytest.mark.parametrize(
    ("strategy", "name"),
    cases(
        ["ddp", "fsdp2"],
        SIGNALS,
        soon=lambda strategy, name: strategy == "ddp" and name == "grpo",
    ),
)
def test_a_signal_to_one_rank_stops_all_and_costs_nothing(strategy, name, whole, ranks, tiny_policy, tmp_path):
    """They agree on the end at the next boundary; none of them waits for the others forever."""
    run, _ = whole(strategy, name)
    last, _ = ranks(stopped, name, tiny_policy, tmp_path, strategy, Tell(*SIGNALS[name]))
    rest, _ = ranks(resumed, name, tiny_policy, tmp_path, strategy, last)
    assert len(rest["steps"]) < len(run["steps"])
    same(rest, run)
    assert rest["logged"] == run["logged"]

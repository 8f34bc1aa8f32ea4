"""Every number that is logged is the same on one rank and on two, whatever the ranks have of the work."""

import math

import pytest

from tests.checks import cases
from tests.glossary import unexplained
from tests.invariants.metric_runs import RUNS, logged

#: What depends on the machine and on how the work is dealt out: times, decoding steps, and what is read again in each of them.
OF_THE_MACHINE = ("time/", "speed/", "work/steps", "work/seen")
#: Names that must be among the logged ones, so that the comparison says something of them.
EXPECTED = {
    "grpo": ("reward_failures/raised", "rollout/failed_fraction", "rollout/filtered_fraction", "kl/sequence", "val/pass@1"),
    "dapo": ("rollout/filtered_fraction", "rollout/overlong_penalty", "rollout/kept_fraction", "reward_failures/raised"),
    "dapo, few groups": ("rollout/filtered_fraction", "rollout/overlong_penalty", "rollout/kept_fraction", "reward_failures/raised"),
    "ppo": ("value/explained_variance", "value/clip_fraction", "own/tokens", "own/length", "own/tensor"),
    "grpo, one rank idle": ("rollout/forwarded_fraction", "policy/entropy"),
    "grpo, nothing teaches": ("rollout/forwarded_fraction", "policy/entropy"),
    "dpo": ("val/kl", "val/entropy", "rollout/failed_fraction", "reward_failures/raised"),
    "reward model": ("val/accuracy", "val/reward_std", "val/calibration_error"),
    "rft online": ("rollout/accepted_fraction", "rollout/distinct_per_prompt"),
}  # fmt: skip


def of_the_run(step):
    return {name: value for name, value in step.items() if not name.startswith(OF_THE_MACHINE)}


def same(one, other):
    """Return the names of metrics that differ, in any step."""
    pairs = [(of_the_run(a), of_the_run(b)) for a, b in zip(one, other, strict=True)]
    names = {name for pair in pairs for step in pair for name in step}
    missing = {name for name in names if any((name in a) != (name in b) for a, b in pairs)}
    apart = {
        name
        for name in names - missing
        for a, b in pairs
        if name in a
        and not (math.isclose(a[name], b[name], rel_tol=1e-6, abs_tol=1e-9) or a[name] != a[name] != b[name])
    }
    return missing | apart


#: Runs whose metrics are those of others.
ALIKE = ("rft", "rft online", "reward model", "dapo", "grpo, kl in the reward", "grpo, nothing teaches")
#: Runs that keep something from one rollout to the next; the others are one epoch long.
TWO_EPOCHS = ("grpo", "ppo", "dapo", "dapo, few groups")


@pytest.mark.parametrize("name", cases(RUNS, soon=lambda name: name not in ALIKE))
def test_all_that_is_logged_is_the_same_on_two_ranks(name, ranks, tiny_policy, tmp_path):
    epochs = 2 if name in TWO_EPOCHS else 1
    one = logged(name, tiny_policy, tmp_path / "one", max_epochs=epochs)
    two, _ = ranks(logged, name, tiny_policy, tmp_path / "two", devices=2, strategy="ddp", max_epochs=epochs)
    assert len(one) == len(two) >= 2 * epochs
    assert same(one, two) == set()
    names = {metric for step in one for metric in step}
    assert names >= set(EXPECTED.get(name, ())), set(EXPECTED[name]) - names
    assert "train/loss" in names and len(names) > 10
    assert unexplained(name for name in names if not name.startswith("own/")) == set()
    if name == "grpo":  # the comparison can fail: this is what dividing a sum by the ranks would look like
        halved = [step | {"reward_failures/raised": step.get("reward_failures/raised", 0) / 2} for step in two]
        assert same(halved, two) == {"reward_failures/raised"}

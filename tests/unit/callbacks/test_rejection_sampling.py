"""Which responses are accepted."""

from types import SimpleNamespace

import pytest
import torch

from rl_lightning.callbacks import RejectionSampling
from rl_lightning.callbacks.rejection_sampling import exact_text, ignoring_whitespace
from rl_lightning.errors import UserError
from tests.support import random_rollout

ALONE = SimpleNamespace(world_size=1)
MODULE = "rl_lightning.callbacks.rejection_sampling"
REWARDS = [1.0, 1.0, 0.0, 1.0, 0.49, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
TEXTS = ["a b", "a  b", "c", "a b", "x", "a b", "y", "z", "p", "q", "r", "s"]


def accepted(rewards=REWARDS, texts=TEXTS, **settings):
    """Return the rollout and its advantages, one a response, having checked that all of its tokens have it."""
    rollout = random_rollout(groups=3, group_size=4)
    rollout.rewards = torch.tensor(rewards, dtype=torch.float64)
    rollout.raw_rewards, rollout.advantages, rollout.responses = rollout.rewards.clone(), None, list(texts)
    whole = rollout.response_mask.clone()
    RejectionSampling(**settings).on_rollout_advantages(ALONE, None, rollout)
    first = rollout.advantages[:, :1]
    assert torch.equal(rollout.advantages, first * whole)
    return rollout, first[:, 0].tolist()


def test_a_response_is_accepted_from_the_threshold_on():
    assert accepted()[1] == [1, 1, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0]
    assert accepted(threshold=0.51)[1] == [1, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]
    assert accepted(threshold=0.0)[1] == [1] * 12


def test_duplicates_are_of_the_same_prompt_and_by_the_given_key():
    assert accepted(deduplicate=f"{MODULE}.exact_text")[1] == [1, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]
    assert accepted(deduplicate=f"{MODULE}.ignoring_whitespace")[1] == [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]
    assert exact_text("a  b") != exact_text("a b")
    assert ignoring_whitespace("\ta  b\n") == ignoring_whitespace("a b") != ignoring_whitespace("ab")


def test_a_cap_holds_for_each_prompt_after_duplicates_are_out():
    assert accepted(max_per_prompt=2)[1] == [1, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]
    both = {"deduplicate": f"{MODULE}.ignoring_whitespace", "max_per_prompt": 2}
    assert accepted(rewards=[1.0] * 12, **both)[1] == [1, 0, 1, 0, 1, 1, 0, 0, 1, 1, 0, 0]


def test_over_all_responses_the_rejected_ones_count_and_over_accepted_ones_they_do_not():
    counts = {by: accepted(normalize_by=by)[0].response_mask.any(1).tolist() for by in ("all", "accepted")}
    assert counts == {"all": [True] * 12, "accepted": [reward >= 0.5 for reward in REWARDS]}


def test_a_failed_reward_is_neither_accepted_nor_counted():
    rollout = random_rollout(groups=1, group_size=4)
    rollout.rewards = torch.tensor([1.0, torch.nan, 0.0, 1.0], dtype=torch.float64)
    rollout.response_mask[1] = False
    RejectionSampling().on_rollout_advantages(ALONE, None, rollout)
    assert rollout.advantages[:, 0].tolist() == [1, 0, 0, 1]
    assert rollout.metrics["rollout/accepted_fraction"] == pytest.approx(2 / 3)


def test_what_is_logged():
    """Pass rates 3/4, 1/4, 0: three of four accepted responses come from an easy prompt, one from a medium one."""
    metrics = accepted()[0].metrics
    assert metrics["rollout/accepted_fraction"] == pytest.approx(4 / 12)
    assert metrics["rollout/distinct_per_prompt"] == pytest.approx((2 + 1 + 0) / 3)
    shares = {name: metrics[f"rollout/yield_{name}"] for name in ("hard", "medium", "easy")}
    assert shares == pytest.approx({"hard": 0, "medium": 0.25, "easy": 0.75})
    fewer = accepted(deduplicate=f"{MODULE}.ignoring_whitespace")[0].metrics
    assert fewer["rollout/accepted_fraction"] == pytest.approx(2 / 12)
    assert fewer["rollout/distinct_per_prompt"] == pytest.approx((1 + 1 + 0) / 3)
    assert fewer["rollout/yield_easy"] == pytest.approx(0.5)
    nothing = accepted(rewards=[0.0] * 12)[0].metrics
    assert nothing["rollout/accepted_fraction"] == 0 and "rollout/yield_hard" not in nothing


def test_yield_of_hard_prompts():
    rollout = random_rollout(groups=1, group_size=8)
    rollout.rewards = torch.tensor([0.0, 1.0, *[0.0] * 6], dtype=torch.float64)
    RejectionSampling().on_rollout_advantages(ALONE, None, rollout)
    assert rollout.metrics["rollout/yield_hard"] == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_per_prompt": 0}, "max_per_prompt must be at least 1"),
        ({"normalize_by": "some"}, "normalize_by"),
        ({"deduplicate": f"{MODULE}.exact_txt"}, r"deduplicate.*exact_text"),
        ({"deduplicate": "exact_text"}, "deduplicate"),
    ],
)
def test_mistakes(settings, message):
    with pytest.raises(UserError, match=message):
        RejectionSampling(**settings)


def test_the_best_of_a_prompt_is_taken_whatever_it_is_worth_and_equal_ones_as_they_were_sampled():
    rewards = [0.1, 0.9, 0.3, 0.9, -2.0, -1.0, -3.0, -1.0, 5.0, 4.0, 6.0, 1.0]
    best = {"threshold": -float("inf"), "max_per_prompt": 1, "order": "best"}
    assert accepted(rewards, **best)[1] == [0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0]
    assert accepted(rewards, **best | {"order": "sampled"})[1] == [1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]
    assert accepted(rewards, **best | {"threshold": 0.0})[1] == [0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]
    with pytest.raises(UserError, match="order: best changes nothing"):
        RejectionSampling(order="best")

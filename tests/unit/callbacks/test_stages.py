"""Callbacks that change rewards and advantages."""

from types import SimpleNamespace

import pytest
import torch

from rl_lightning.algorithms import GRPO
from rl_lightning.callbacks import GroupNormalize, OverlongShaping, RolloutCallback
from rl_lightning.data import ChainSum, RolloutDataModule
from rl_lightning.errors import UserError
from rl_lightning.generation import Sampling
from rl_lightning.rewards import RewardSpec
from tests.checks import assert_same
from tests.support import random_rollout, trainer

ALONE = SimpleNamespace(world_size=1)


def small_rollout(rewards, group_size=2):
    """Return responses with the given rewards, group by group."""
    rollout = random_rollout(groups=len(rewards) // group_size, group_size=group_size)
    rollout.raw_rewards = torch.tensor(rewards, dtype=torch.float64)
    rollout.rewards = rollout.raw_rewards.clone()
    rollout.advantages = None
    return rollout


def advantages(rollout, **settings):
    """Return the advantage of every response, having checked that all of its tokens have it and padding has 0."""
    GroupNormalize(**settings).on_rollout_advantages(ALONE, None, rollout)
    mask = rollout.response_mask
    first = rollout.advantages[:, :1]
    assert torch.equal(rollout.advantages, first * mask)
    return first[:, 0]


# --------------------------------------------------------------------------------------------------- GroupNormalize


def test_advantages_by_hand():
    rollout = small_rollout([1.0, 0.0, 5.0, 2.0])
    half = 2**-0.5
    assert_same(advantages(rollout, eps=0.0), [half, -half, half, -half])
    assert_same(advantages(rollout, eps=0.0, ddof=0), [1.0, -1.0, 1.0, -1.0])
    assert_same(advantages(rollout, eps=0.5, ddof=0), [0.5, -0.5, 0.75, -0.75])
    assert_same(advantages(rollout, scale="none"), [0.5, -0.5, 1.5, -1.5])
    # The four rewards have the mean 2 and the squares 1 + 4 + 9 + 0.
    deviation = (14 / 3) ** 0.5
    assert_same(advantages(rollout, scale="batch", eps=0.0), torch.tensor([0.5, -0.5, 1.5, -1.5]).double() / deviation)


def test_the_batch_deviation_is_that_of_all_ranks():
    rollout = small_rollout([1.0, 0.0, 5.0, torch.nan])
    elsewhere = torch.tensor([3.0, 3.0, torch.nan, 3.0], dtype=torch.float64)
    module = SimpleNamespace(all_gather=lambda rewards: torch.stack([rewards, elsewhere]))
    GroupNormalize(scale="batch", eps=0.0).on_rollout_advantages(SimpleNamespace(world_size=2), module, rollout)
    deviation = float(torch.tensor([1.0, 0.0, 5.0, 3.0, 3.0, 3.0], dtype=torch.float64).std())
    assert_same(rollout.advantages[:, 0], [0.5 / deviation, -0.5 / deviation, 0.0, 0.0])


@pytest.mark.parametrize("scale", ["std", "batch", "none"])
def test_no_spread_is_zero(scale):
    assert advantages(small_rollout([0.1, 0.1, 0.1, 1.0, 0.0, 0.0], 3), scale=scale)[:3].tolist() == [0.0] * 3


def test_failed_rewards_are_left_out():
    nan = torch.nan
    rollout = small_rollout([1.0, nan, 0.0, nan, nan, 1.0], 3)
    rollout.response_mask &= ~rollout.raw_rewards.isnan()[:, None]
    half = 2**-0.5
    assert_same(advantages(rollout, eps=0.0), [half, 0.0, -half, 0.0, 0.0, 0.0])
    assert not rollout.advantages.isnan().any()


def test_a_group_of_one_is_refused():
    data = SimpleNamespace(group_size=1)
    with pytest.raises(UserError, match="group_size=1 must be at least 2"):
        GroupNormalize().check_settings(SimpleNamespace(datamodule=data))
    data.group_size = 2
    GroupNormalize().check_settings(SimpleNamespace(datamodule=data))


# -------------------------------------------------------------------------------------------------- OverlongShaping


def sampling(max_new_tokens):
    return SimpleNamespace(datamodule=SimpleNamespace(sampling=Sampling(max_new_tokens)))


def shape(rollout, cap=9, **settings):
    callback = OverlongShaping(**settings)
    callback.check_settings(sampling(cap))
    callback.on_rollout_rewards(ALONE, None, rollout)
    return rollout.rewards - rollout.raw_rewards


def with_lengths(lengths):
    rollout = small_rollout([0.0] * len(lengths))
    mask = torch.arange(rollout.response_length) < torch.tensor(lengths)[:, None]
    rollout.response_mask = mask.clone()
    rollout.attention_mask = torch.cat([rollout.attention_mask[:, : -rollout.response_length], mask], 1)
    return rollout


def test_the_penalty_has_its_breakpoints_where_it_should():
    """The cap of 9 tokens from the sampling settings, the ramp over the 4 before it."""
    lengths = [1, 5, 6, 7, 8, 9]
    assert_same(shape(with_lengths(lengths), cache_length=4), [0.0, 0.0, -0.25, -0.5, -0.75, -1.0])
    assert_same(shape(with_lengths(lengths), cache_length=4, weight=0.5), [0, 0, -0.125, -0.25, -0.375, -0.5])
    assert_same(shape(with_lengths(lengths), cache_length=2, max_length=7), [0.0, 0.0, -0.5, -1.0, -1.0, -1.0])
    assert_same(shape(with_lengths(lengths), cache_length=0, max_length=7), [0.0, 0.0, 0.0, 0.0, -1.0, -1.0])


def test_the_penalty_adds_to_the_reward_and_is_logged():
    rollout = with_lengths([5, 9])
    rollout.raw_rewards += 0.5
    rollout.rewards = rollout.raw_rewards.clone()
    shape(rollout, cache_length=4)
    assert rollout.rewards.tolist() == [0.5, -0.5] and rollout.raw_rewards.tolist() == [0.5, 0.5]
    assert rollout.metrics["rollout/overlong_penalty"] == -0.5


def test_a_length_counts_tokens_that_do_not_count_in_the_loss():
    rollout = with_lengths([9, 9])
    rollout.response_mask[0] = False
    rollout.raw_rewards[0] = rollout.rewards[0] = torch.nan
    penalty = shape(rollout, cache_length=4)
    assert penalty[0].isnan() and penalty[1] == -1.0
    assert rollout.metrics["rollout/overlong_penalty"] == -1.0


@pytest.mark.parametrize("lengths", [(10, None), (-1, None), (5, 4)])
def test_impossible_lengths_are_refused(lengths):
    cache_length, max_length = lengths
    with pytest.raises(UserError, match=f"cache_length={cache_length} must lie between 0 and max_length"):
        OverlongShaping(cache_length, max_length).check_settings(sampling(9))


# ------------------------------------------------------------------------------------------------- the order of stages


class Keep(RolloutCallback):
    """Keeps the rollouts."""

    def __init__(self):
        self.rollouts = []

    def on_rollout_end(self, trainer, module, rollout):
        self.rollouts.append(rollout)


def test_the_order_of_callbacks_does_not_matter_between_stages(tiny_policy, tmp_path):
    def rollout(shaping, last):
        keep = Keep()
        run = trainer(tmp_path, [*shaping, keep])
        run.callbacks.sort(key=lambda callback: isinstance(callback, last))
        data = RolloutDataModule(
            prompts=ChainSum(train_size=8, val_size=2), sampling=Sampling(max_new_tokens=6), seed=5,
            rewards=[RewardSpec("rl_lightning.rewards.functions.response_length")],
            prompts_per_rollout=4, group_size=4,
        )  # fmt: skip
        run.fit(GRPO(policy=tiny_policy), datamodule=data)
        (kept,) = keep.rollouts
        return kept

    first = rollout([OverlongShaping(cache_length=4, weight=3.0)], last=OverlongShaping)
    second = rollout([OverlongShaping(cache_length=4, weight=3.0)], last=GroupNormalize)
    plain = rollout([], last=GroupNormalize)
    assert torch.equal(first.input_ids, second.input_ids) and torch.equal(first.rewards, second.rewards)
    assert torch.equal(first.advantages, second.advantages)
    assert not torch.allclose(first.advantages, plain.advantages), "the penalty changes nothing here"

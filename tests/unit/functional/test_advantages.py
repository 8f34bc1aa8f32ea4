"""Group-relative advantages."""

import math

import pytest
import torch

from rl_lightning.functional import group_normalize
from tests.checks import assert_same, holds_only_for


def by_hand(rewards, groups, scored, eps, ddof, scale="std"):
    """A slow loop in plain Python."""
    result = [0.0] * len(rewards)
    everything = [r for r, s in zip(rewards, scored, strict=True) if s]
    mean = sum(everything) / len(everything)
    batch_std = math.sqrt(sum((r - mean) ** 2 for r in everything) / (len(everything) - ddof))
    for group in set(groups):
        members = [i for i, g in enumerate(groups) if g == group and scored[i]]
        values = [rewards[i] for i in members]
        if len(values) < 2 or max(values) == min(values):
            continue
        mean = sum(values) / len(values)
        std = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - ddof))
        divisor = {"std": std + eps, "batch": batch_std + eps, "none": 1.0}[scale]
        for i in members:
            result[i] = (rewards[i] - mean) / divisor
    return result


def population(*args, **kwargs):
    return group_normalize(*args, **{**kwargs, "ddof": 1 - kwargs["ddof"]})


def whole_batch(rewards, group_ids, *args, **kwargs):
    return group_normalize(rewards, torch.zeros_like(group_ids), *args, **kwargs)


def ignores_scored(rewards, group_ids, scored, *args, **kwargs):
    return group_normalize(rewards.nan_to_num(0.0), group_ids, None, *args, **kwargs)


@holds_only_for(group_normalize, population=population, whole_batch=whole_batch, ignores_scored=ignores_scored)
def test_group_normalize_is_the_slow_loop(implementation):
    generator = torch.Generator().manual_seed(1)
    rewards = torch.randn(24, generator=generator, dtype=torch.float64)
    groups = torch.randperm(24, generator=generator) % 5
    scored = torch.rand(24, generator=generator) > 0.2
    rewards[~scored] = torch.nan
    for scale in ("std", "none", "batch"):
        for ddof in (0, 1):
            actual = implementation(rewards, groups, scored, scale=scale, eps=1e-6, ddof=ddof)
            expected = by_hand(rewards.tolist(), groups.tolist(), scored.tolist(), 1e-6, ddof, scale)
            assert_same(actual, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("scale", ["std", "none", "batch"])
def test_a_group_without_spread_is_exactly_zero(scale):
    # 0.1 + 0.1 + 0.1 is not 0.3 in binary: the mean of equal rewards may differ from them.
    rewards = torch.tensor([0.1, 0.1, 0.1, 1.0, 0.0, 0.5])
    advantages = group_normalize(rewards, torch.tensor([7, 7, 7, 2, 2, 2]), scale=scale, eps=0.0)
    assert advantages[:3].tolist() == [0.0, 0.0, 0.0]
    assert advantages[3:].abs().min() >= 0 and advantages[3] > 0


def test_a_group_with_one_scored_member_is_zero():
    advantages = group_normalize(
        torch.tensor([1.0, torch.nan, 1.0, 0.0]), torch.tensor([0, 0, 1, 1]), torch.tensor([True, False, True, True])
    )
    assert advantages[:2].tolist() == [0.0, 0.0]
    assert advantages[2] > 0 > advantages[3]


def test_advantages_of_a_group_sum_to_zero_and_do_not_depend_on_the_scale_of_rewards():
    zero_one = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    groups = torch.tensor([0, 1, 0, 1, 0, 1, 0, 1])
    advantages = group_normalize(zero_one, groups, eps=0.0)
    for group in (0, 1):
        assert abs(float(advantages[groups == group].sum())) < 1e-14
    assert_same(group_normalize(2 * zero_one - 1, groups, eps=0.0), advantages)


def test_a_batch_deviation_that_is_given_is_used():
    rewards, groups = torch.tensor([1.0, 0.0]), torch.tensor([0, 0])
    given = group_normalize(rewards, groups, scale="batch", eps=0.0, batch_std=torch.tensor(2.0))
    assert given.tolist() == [0.25, -0.25]

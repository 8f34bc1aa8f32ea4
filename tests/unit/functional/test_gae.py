"""Generalized advantage estimation, and whitening."""

import math

import pytest
import torch

from rl_lightning.functional import gae, masked_variance, masked_whiten
from tests.checks import assert_same, holds_only_for

GAMMA, LAMBDA = 0.9, 0.8
ROWS, COLUMNS = 6, 7


def case(dtype=torch.float64):
    """Return rewards, values, mask and bootstrap values; a response without a token that counts, NaN in the padding."""
    generator = torch.Generator().manual_seed(2)
    rewards, values = torch.randn(2, ROWS, COLUMNS, generator=generator, dtype=dtype)
    bootstrap = torch.randn(ROWS, generator=generator, dtype=dtype)
    lengths = torch.tensor([7, 1, 4, 0, 6, 2])
    mask = torch.arange(COLUMNS) < lengths[:, None]
    return rewards.masked_fill(~mask, torch.nan), values.masked_fill(~mask, torch.nan), mask, bootstrap


def by_definition(rewards, values, after, exponent):
    """Σ_l (γλ)^exponent δ_{t+l} of one response, tokens numbered from 0, in plain Python."""
    values = [*values, after]
    last = len(rewards) - 1
    deltas = [reward + GAMMA * values[t + 1] - values[t] for t, reward in enumerate(rewards)]
    return [
        sum((GAMMA * LAMBDA) ** exponent(t, step, last) * deltas[step] for step in range(t, last + 1))
        for t in range(last + 1)
    ]


def expected_advantages(bootstrap, exponent=lambda t, step, last: step - t):
    rewards, values, mask, after = case()
    result = torch.zeros(ROWS, COLUMNS, dtype=torch.float64)
    for row, length in enumerate(mask.sum(1).tolist()):
        own = by_definition(
            rewards[row, :length].tolist(), values[row, :length].tolist(), float(after[row]) * bootstrap, exponent
        )
        result[row, :length] = torch.tensor(own, dtype=torch.float64)
    return result


def without_lambda(*args, gae_lambda, **kwargs):
    return gae(*args, gae_lambda=1.0, **kwargs)


def without_gamma(*args, gamma, **kwargs):
    return gae(*args, gamma=1.0, **kwargs)


def padding_ends_nothing(rewards, values, mask, **kwargs):
    """V of the padding instead of 0 after the last token."""
    values = torch.where(mask, values, 1.0)
    return gae(rewards.nan_to_num(0.0), values, torch.ones_like(mask), **kwargs)


def bootstraps_always(rewards, values, mask, bootstrap_values=None, **kwargs):
    bootstrap_values = torch.ones(ROWS, dtype=values.dtype) if bootstrap_values is None else bootstrap_values
    return gae(rewards, values, mask, bootstrap_values=bootstrap_values, **kwargs)


def returns_are_advantages(*args, **kwargs):
    advantages, _ = gae(*args, **kwargs)
    return advantages, advantages


@holds_only_for(
    gae,
    without_lambda=without_lambda,
    without_gamma=without_gamma,
    padding_ends_nothing=padding_ends_nothing,
    bootstraps_always=bootstraps_always,
    returns_are_advantages=returns_are_advantages,
)
def test_gae_is_the_sum_of_its_definition(implementation):
    rewards, values, mask, after = case()
    for bootstrap in (False, True):
        advantages, returns = implementation(
            rewards,
            values,
            mask,
            gamma=GAMMA,
            gae_lambda=LAMBDA,
            **({"bootstrap_values": after} if bootstrap else {}),
        )
        expected = expected_advantages(bootstrap)
        assert_same(torch.where(mask, advantages, 0), expected)
        assert_same(torch.where(mask, returns, 0), torch.where(mask, expected + values, 0))


def test_the_exponent_in_print_is_another_number():
    """(γλ)^{T−t+1} on the last term, as PPO's Eq. 11 and the notebook print it; δ_{T−1} is T − 1 − t steps ahead."""
    rewards, values, mask, _ = case()
    actual, _ = gae(rewards, values, mask, GAMMA, LAMBDA)
    printed = expected_advantages(False, lambda t, step, last: step - t + 2 * (step == last))
    assert_same(actual, expected_advantages(False))
    assert float((actual - printed).abs().max()) > 0.1


def test_the_ends_of_lambda():
    """λ = 0 is one step; λ = 1 is everything to come, less V, and at γ = 1 the target does not depend on V."""
    rewards, values, mask, _ = case()
    one_step, _ = gae(rewards, values, mask, GAMMA, 0.0)
    following = torch.cat([values.nan_to_num(0.0)[:, 1:], torch.zeros(ROWS, 1, dtype=torch.float64)], 1)
    assert_same(one_step, torch.where(mask, rewards + GAMMA * following - values, 0))
    advantages, returns = gae(rewards, values, mask, 1.0, 1.0)
    to_come = rewards.nan_to_num(0.0).flip(1).cumsum(1).flip(1)
    assert_same(returns, torch.where(mask, to_come, 0))
    assert_same(advantages, torch.where(mask, to_come - values, 0))


def test_tokens_that_do_not_count_take_no_time():
    rewards, values, _, after = case()
    rewards, values = rewards[:1], values[:1]
    mask = torch.tensor([[True, True, False, True, False, False, True]])
    advantages, returns = gae(rewards, values, mask, GAMMA, LAMBDA, after[:1])
    kept = torch.ones(1, 4, dtype=torch.bool)
    short, targets = gae(rewards[mask][None], values[mask][None], kept, GAMMA, LAMBDA, after[:1])
    assert_same(advantages[mask], short[0])
    assert_same(returns[mask], targets[0])
    assert float(advantages[~mask].abs().max()) == 0


# --------------------------------------------------------------------- whitening


def whitened_by_hand(values, eps):
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return [(value - mean) / (deviation + eps) for value in values]


def over_everything(values, mask, **kwargs):
    return masked_whiten(values.nan_to_num(0.0), torch.ones_like(mask), **kwargs)


def only_centred(values, mask, **kwargs):
    return torch.where(mask, values - values[mask].mean(), 0)


def population(values, mask, **kwargs):
    count = mask.sum()
    return masked_whiten(values, mask, **kwargs) * (count / (count - 1)).sqrt()


@holds_only_for(masked_whiten, over_everything=over_everything, only_centred=only_centred, population=population)
def test_whitening_is_over_the_tokens_that_count(implementation):
    values, _, mask, _ = case()
    whitened = implementation(values, mask, eps=1e-3)
    assert_same(whitened[mask], torch.tensor(whitened_by_hand(values[mask].tolist(), 1e-3), dtype=torch.float64))
    assert float(whitened[~mask].abs().max()) == 0


def test_whitening_over_ranks_is_whitening_of_all_of_them():
    """Two ranks that add up their sums: what each is given back is what it would have had alone with everything."""
    values, _, mask, _ = case()
    ranks = [(values[:2], mask[:2]), (values[2:], mask[2:])]
    sums = [torch.stack([m.sum().double(), v[m].sum()]) for v, m in ranks]
    mean = sum(sums)[1] / sum(sums)[0]
    squares = [(v[m] - mean).square().sum() for v, m in ranks]
    whole = masked_whiten(values, mask)
    for (own_values, own_mask), expected in zip(ranks, (whole[:2], whole[2:]), strict=True):
        exchanged = iter([sum(sums), sum(squares)])
        assert_same(masked_whiten(own_values, own_mask, total=lambda _, totals=exchanged: next(totals)), expected)
        assert float((masked_whiten(own_values, own_mask) - expected).abs().max()) > 0.01


@pytest.mark.parametrize("count", [0, 1, 1000])
def test_without_spread_whitened_values_are_exactly_zero(count):
    mask = torch.arange(1000) < count
    assert masked_whiten(torch.full((1000,), 0.1), mask).tolist() == [0.0] * 1000


def test_variance():
    values, _, mask, _ = case()
    assert_same(masked_variance(values, mask), values[mask].var(correction=0))
    assert float(masked_variance(values, torch.zeros_like(mask))) == 0

"""The ratio of the trainer's policy to the sampler's, and its bounds."""

import math

import pytest
import torch

from rl_lightning.functional import bounded_ratio, kl_k3, sampler_ratio
from tests.checks import assert_same, holds_only_for

LOGPROBS = torch.tensor([[-1.0, -2.0, -0.5], [-0.1, -3.0, -1.0]], dtype=torch.float64)
SAMPLER = torch.tensor([[-1.5, -1.0, -0.5], [-0.4, -2.0, torch.nan]], dtype=torch.float64)
MASK = torch.tensor([[True, True, True], [True, True, False]])


def turned_over(logprobs, sampler_logprobs, mask, level="token"):
    return sampler_ratio(sampler_logprobs, logprobs, mask, level)


def forgets_the_mask(logprobs, sampler_logprobs, mask, level="token"):
    return sampler_ratio(logprobs, sampler_logprobs, torch.ones_like(mask), level)


def mean_of_tokens(logprobs, sampler_logprobs, mask, level="token"):
    """The geometric mean instead of the product."""
    ratio = sampler_ratio(logprobs, sampler_logprobs, mask, level)
    return ratio if level == "token" else ratio ** (1 / mask.sum(1, keepdim=True))


@holds_only_for(
    sampler_ratio, turned_over=turned_over, forgets_the_mask=forgets_the_mask, mean_of_tokens=mean_of_tokens
)
def test_the_ratio_is_that_of_a_loop(implementation):
    for level in ("token", "sequence", "sequence_mean"):
        expected = torch.ones(2, 3, dtype=torch.float64)
        for row in range(2):
            inside = [column for column in range(3) if MASK[row, column]]
            single = {c: math.exp(float(LOGPROBS[row, c])) / math.exp(float(SAMPLER[row, c])) for c in inside}
            for column in inside:
                root = len(inside) if level == "sequence_mean" else 1
                expected[row, column] = single[column] if level == "token" else math.prod(single.values()) ** (1 / root)
        assert_same(implementation(LOGPROBS, SAMPLER, MASK, level), expected)


RATIOS = torch.tensor([0.0, 0.1, 0.5, 0.51, 1.0, 1.9, 2.0, 2.1, 50.0, torch.inf], dtype=torch.float64)


def by_hand(ratio, bound, cap):
    if bound == "truncate":
        return min(ratio, cap)
    return ratio if 1 / cap <= ratio <= cap else 0.0


def no_lower_bound(ratio, bound, cap):
    return torch.where(ratio <= cap, ratio, 0) if bound == "mask" else bounded_ratio(ratio, bound, cap)


def clamps_below(ratio, bound, cap):
    return ratio.clamp(1 / cap, cap) if bound == "truncate" else bounded_ratio(ratio, bound, cap)


def other_bound(ratio, bound, cap):
    return bounded_ratio(ratio, "mask" if bound == "truncate" else "truncate", cap)


@holds_only_for(bounded_ratio, no_lower_bound=no_lower_bound, clamps_below=clamps_below, other_bound=other_bound)
def test_the_bounds_are_the_closed_form(implementation):
    for bound in ("truncate", "mask"):
        for cap in (1.0, 2.0, 3.5):
            expected = [by_hand(ratio, bound, cap) for ratio in RATIOS.tolist()]
            assert_same(implementation(RATIOS, bound, cap), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("bound", ["truncate", "mask"])
def test_without_a_cap_nothing_is_bounded(bound):
    assert torch.equal(bounded_ratio(RATIOS, bound, math.inf), RATIOS)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="'word'; choose one of token, sequence"):
        sampler_ratio(LOGPROBS, SAMPLER, MASK, "word")
    with pytest.raises(ValueError, match="'clip'; choose one of truncate, mask"):
        bounded_ratio(RATIOS, "clip", 2.0)


def other_direction(sampler_logprobs, logprobs):
    return kl_k3(logprobs, sampler_logprobs)


@holds_only_for(kl_k3, other_direction=other_direction)
def test_the_mismatch_is_the_divergence_of_the_sampler_from_the_trainer(implementation):
    """E over tokens of μ of k3(log μ, log π) is KL(μ‖π)."""
    generator = torch.Generator().manual_seed(4)
    sampler, policy = torch.randn(2, 9, generator=generator, dtype=torch.float64).log_softmax(-1)
    expected = (sampler.exp() * (sampler - policy)).sum()
    assert_same((sampler.exp() * implementation(sampler, policy)).sum(), expected)

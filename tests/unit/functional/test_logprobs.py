"""Log-probabilities, entropy, masks, shaping."""

import math

import pytest
import torch

from rl_lightning.functional import (
    entropy_from_logits,
    logprobs_from_logits,
    masked_mean,
    overlong_penalty,
    response_mask_from_ids,
)
from tests.checks import assert_same, holds_only_for


def by_hand(logits, tokens, temperature=1.0):
    probs = [[math.exp(x / temperature) for x in row] for row in logits.tolist()]
    return torch.tensor(
        [math.log(p[t] / sum(p)) for p, t in zip(probs, tokens.tolist(), strict=True)], dtype=torch.float64
    )


def divides_logprobs(logits, tokens, temperature=1.0):
    """A fault seen in the wild: the temperature divides log-probabilities instead of logits."""
    return logprobs_from_logits(logits, tokens) / temperature


@holds_only_for(logprobs_from_logits, divides_logprobs=divides_logprobs)
def test_logprobs_are_those_of_the_tempered_softmax(implementation):
    logits, tokens = torch.randn(5, 7, dtype=torch.float64), torch.tensor([0, 6, 3, 3, 1])
    for temperature in (1.0, 0.5, 2.0):
        assert_same(implementation(logits, tokens, temperature), by_hand(logits, tokens, temperature))


def test_half_precision_logits_are_summed_in_float32():
    logits = torch.randn(4, 50_000).bfloat16()
    exact = logprobs_from_logits(logits.double(), torch.arange(4))
    assert float((logprobs_from_logits(logits, torch.arange(4)) - exact).abs().max()) < 1e-5


def test_entropy():
    assert_same(entropy_from_logits(torch.zeros(1, 8)), torch.tensor([math.log(8)]))
    certain = torch.tensor([[0.0, -torch.inf]], requires_grad=True)
    assert float(entropy_from_logits(certain)) == 0.0
    logits = torch.randn(3, 6, dtype=torch.float64)
    probs = (logits / 0.7).softmax(-1)
    assert_same(entropy_from_logits(logits, 0.7), -(probs * probs.log()).sum(-1))


def masks_by_pad(ids, stop_ids):
    return ids != 0


@holds_only_for(response_mask_from_ids, masks_by_pad=masks_by_pad)
def test_the_first_stop_token_counts_and_the_pads_after_it_do_not(implementation):
    """Pad and stop are one token here, as in many tokenizers."""
    ids = torch.tensor([[5, 6, 0, 0], [5, 6, 7, 8], [0, 0, 0, 0], [5, 9, 0, 0]])
    expected = [[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]]
    assert implementation(ids, {0, 9}).int().tolist() == expected


def test_masked_mean_never_reads_outside_the_mask():
    values = torch.tensor([1.0, torch.nan, 3.0, torch.inf])
    assert float(masked_mean(values, torch.tensor([True, False, True, False]))) == 2.0
    assert float(masked_mean(values, torch.zeros(4, dtype=torch.bool))) == 0.0


@pytest.mark.parametrize(
    ("length", "penalty"), [(1, 0), (12, 0), (13, -0.25), (14, -0.5), (15, -0.75), (16, -1), (17, -1), (100, -1)]
)
def test_overlong_penalty_at_its_break_points(length, penalty):
    assert float(overlong_penalty(torch.tensor([length]), max_length=16, cache_length=4)) == penalty


def test_overlong_penalty_with_a_cap_for_each_response():
    lengths, caps = torch.tensor([14, 6, 2, 2]), torch.tensor([16, 8, 2, 3])
    alone = [
        overlong_penalty(length[None], int(cap), min(4, int(cap))) for length, cap in zip(lengths, caps, strict=True)
    ]
    assert overlong_penalty(lengths, caps, 4).tolist() == torch.cat(alone).tolist()
    assert overlong_penalty(lengths, caps, 0).tolist() == [0.0] * 4


def test_overlong_penalty_without_a_cache_is_a_step():
    assert overlong_penalty(torch.tensor([15, 16, 17]), 16, 0).tolist() == [0, 0, -1]
    with pytest.raises(ValueError, match="cache_length"):
        overlong_penalty(torch.tensor([1]), 4, 5)

"""Reductions as weights."""

import pytest
import torch

from rl_lightning.functional import batch_totals, token_weights
from tests.checks import assert_same

MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]], dtype=torch.bool)
GROUPS = torch.tensor([3, 3, 8, 8, 8])
VALUES = torch.arange(20.0, dtype=torch.float64).reshape(5, 4).sqrt()

ROWS = [VALUES[i][MASK[i]] for i in range(4)]  # the last row counts nowhere
BY_DEFINITION = {
    "seq_mean": sum(row.mean() for row in ROWS) / 4,
    "group_token_mean": (torch.cat(ROWS[:2]).mean() + torch.cat(ROWS[2:]).mean()) / 2,
    "token_mean": torch.cat(ROWS).mean(),
    "seq_sum": sum(row.sum() for row in ROWS) / 4,
    "constant": sum(row.sum() for row in ROWS) / (4 * 10),
}


def weights(reduction):
    return token_weights(MASK, GROUPS, reduction, batch_totals(MASK, GROUPS), max_length=10)


@pytest.mark.parametrize("reduction", BY_DEFINITION)
def test_a_weighted_sum_is_the_reduction(reduction):
    assert_same((weights(reduction) * VALUES).sum(), BY_DEFINITION[reduction])


@pytest.mark.parametrize("reduction", BY_DEFINITION)
def test_no_other_reduction_gives_the_same_number(reduction):
    for other in BY_DEFINITION:
        if other != reduction:
            with pytest.raises(AssertionError):
                assert_same((weights(other) * VALUES).sum(), BY_DEFINITION[reduction])


@pytest.mark.parametrize("reduction", ["seq_mean", "group_token_mean", "token_mean"])
def test_means_weigh_one_in_all(reduction):
    assert_same(weights(reduction).sum(), torch.tensor(1.0, dtype=torch.float64))
    assert weights(reduction)[~MASK].abs().max() == 0


def test_errors():
    totals = batch_totals(MASK, GROUPS)
    with pytest.raises(ValueError, match="max_length"):
        token_weights(MASK, GROUPS, "constant", totals)
    with pytest.raises(ValueError, match="seq_mean"):
        token_weights(MASK, GROUPS, "mean", totals)

"""Spread and rank correlation within groups: against torchmetrics and loops over single groups."""

import math

import torch
from torchmetrics.functional import spearman_corrcoef

from rl_lightning.functional import group_std, rank_correlation
from rl_lightning.functional.groups import _ranks
from tests.checks import holds_only_for


def groups(seed, size=60, values=6):
    generator = torch.Generator().manual_seed(seed)
    ids = 7 * torch.randint(0, 5, (size,), generator=generator)
    return (
        torch.randint(0, values, (size,), generator=generator) / 3,
        torch.randint(0, 9, (size,), generator=generator),
        ids,
    )


def one_by_one(left, right, ids):
    return torch.tensor([float(spearman_corrcoef(left[ids == one].double(), right[ids == one].double())) for one in ids.unique()])  # fmt: skip


def without_shared_ranks(left, right, ids):
    ranks = [torch.argsort(torch.argsort(values)) for values in (left, right)]
    return one_by_one(*ranks, ids)


def over_all(left, right, ids):
    return one_by_one(left, right, torch.zeros_like(ids)).expand(len(ids.unique()))


@holds_only_for(rank_correlation, without_shared_ranks=without_shared_ranks, over_all=over_all)
def test_the_rank_correlation_is_that_of_each_group_and_equal_values_share_a_rank(correlation):
    for seed in range(3):
        given = groups(seed)
        torch.testing.assert_close(correlation(*given).double(), one_by_one(*given).double(), atol=1e-5, rtol=0)


def test_monotone_maps_change_nothing_and_a_reversed_one_the_sign():
    left, right, ids = groups(4)
    first = rank_correlation(left, right, ids)
    assert torch.equal(rank_correlation(left.exp() * 3, right**3, ids), first)
    torch.testing.assert_close(rank_correlation(-left, right, ids), -first)
    assert not torch.equal(rank_correlation(left, (right - 4) ** 2, ids), first)


def test_a_group_in_which_one_does_not_vary_has_none():
    ids = torch.tensor([3, 3, 1, 1, 2])
    found = rank_correlation(torch.tensor([1.0, 1.0, 2.0, 3.0, 4.0]), torch.tensor([1, 2, 3, 4, 5]), ids)
    assert found[0] == 1.0 and found[1:].isnan().all()
    assert rank_correlation(torch.zeros(0), torch.zeros(0), ids[:0]).shape == (0,)


def test_ranks_of_a_group_follow_those_of_the_group_before():
    member, values = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([5, 7, 7, 3, 1])
    assert _ranks(values, member).tolist() == [0, 1.5, 1.5, 4, 3]


@holds_only_for(
    group_std,
    over_all=lambda values, ids: values.double().std().expand(len(ids.unique())),
    divided_by_n=lambda values, ids: torch.stack(
        [values[ids == one].double().std(correction=0) for one in ids.unique()]
    ),
)
def test_the_standard_deviation_is_that_of_each_group(std):
    values, _, ids = groups(5)
    expected = torch.stack([values[ids == one].double().std() for one in ids.unique()])
    torch.testing.assert_close(std(values, ids).double(), expected)


def test_one_member_has_no_standard_deviation():
    assert math.isnan(group_std(torch.ones(1), torch.zeros(1, dtype=torch.long)))

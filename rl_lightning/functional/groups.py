"""What rewards look like within the groups of answers to one prompt: their spread, and what they go with."""

from __future__ import annotations

import torch
from torch import Tensor


def rank_correlation(left: Tensor, right: Tensor, group_ids: Tensor) -> Tensor:
    """Return Spearman's rank correlation of two quantities within each group; equal values share their mean rank.

    Args:
        left, right: (B,) numbers, none of them NaN.
        group_ids: (B,) long; the members of a group need not be neighbours.

    Returns:
        (groups,) float64 between −1 and 1, in the order of the groups' numbers; NaN where one of both is the same for all members.

    Example:
        >>> rank_correlation(torch.tensor([1.0, 2.0, 9.0]), torch.tensor([30, 20, 10]), torch.tensor([0, 0, 0]))
        tensor([-1.], dtype=torch.float64)
    """
    _, member = group_ids.unique(return_inverse=True)
    one, other = _centred(_ranks(left, member), member), _centred(_ranks(right, member), member)
    shared, own, others = (_sums(product, member) for product in (one * other, one.square(), other.square()))
    return torch.where((own > 0) & (others > 0), shared / (own * others).sqrt(), torch.nan).clamp(-1, 1)


def group_std(values: Tensor, group_ids: Tensor) -> Tensor:
    """Return the standard deviation within each group, with the divisor n − 1.

    Args:
        values: (B,) numbers, none of them NaN.
        group_ids: (B,) long; the members of a group need not be neighbours.

    Returns:
        (groups,) float64, in the order of the groups' numbers; NaN where a group has one member.
    """
    _, member = group_ids.unique(return_inverse=True)
    squares = _sums(_centred(values.double(), member).square(), member)
    return (squares / (_sums(torch.ones_like(values, dtype=torch.float64), member) - 1)).sqrt()


def _ranks(values: Tensor, member: Tensor) -> Tensor:
    # The ranks of a group begin where those of the group before end, which centring takes off again:
    # member 0 0 0 1 1, values 5 7 7 3 1 → ranks 0, 1½, 1½, 4, 3.
    levels, level = values.unique(return_inverse=True)
    _, place, count = (member * len(levels) + level).unique(return_inverse=True, return_counts=True)
    return (count.cumsum(0) - (count + 1) / 2).double()[place]


def _centred(values: Tensor, member: Tensor) -> Tensor:
    return values - (_sums(values, member) / _sums(torch.ones_like(values), member))[member]


def _sums(values: Tensor, member: Tensor) -> Tensor:
    return values.new_zeros(int(member.max()) + 1 if len(member) else 0).index_add(0, member, values)

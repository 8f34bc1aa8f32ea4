"""Every way of averaging a loss over tokens, as one weight per token.

The loss of an optimizer step is Σ_{i,t} w_{i,t} · ℓ_{i,t}. The weights are computed from the *whole* optimizer batch, over all
microbatches and ranks. So every split into microbatches and ranks sums to the same loss and gradient:

    |y| = 2, 1        seq_mean: w = 1/4 1/4 | 1/2        token_mean: w = 1/3 1/3 | 1/3
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

Reduction = Literal["seq_mean", "group_token_mean", "token_mean", "seq_sum", "constant"]


class BatchTotals(NamedTuple):
    """Counts of an optimizer batch, which reductions divide by: scalar tensors."""

    sequences: Tensor  # responses with a token that counts
    tokens: Tensor  # tokens that count
    groups: Tensor  # prompts with a token that counts


def batch_totals(response_mask: Tensor, group_ids: Tensor) -> BatchTotals:
    """Count the responses, tokens and groups of some rows; a response or group without a counted token is left out.

    Args:
        response_mask: (B, R) bool.
        group_ids: (B,) long.

    Returns:
        Three float64 scalars; sum them over ranks before use.
    """
    present = response_mask.any(1)
    counts = present.sum(), response_mask.sum(), group_ids[present].unique().numel()
    return BatchTotals(*(torch.as_tensor(count, dtype=torch.float64, device=response_mask.device) for count in counts))


def token_weights(
    response_mask: Tensor,
    group_ids: Tensor,
    reduction: Reduction,
    totals: BatchTotals,
    max_length: int | None = None,
) -> Tensor:
    """Return the weight w_{i,t} of each token in the loss, 0 outside the mask.

    ==================  =====================================  ===============================================
    reduction           weight on a response token             used by
    ==================  =====================================  ===============================================
    `seq_mean`          1 / (N · |y_i|)                        the notebook's SFT, PPO, RFT and GRPO
    `group_token_mean`  1 / (groups · Σ_{j in group} |y_j|)    the notebook's DAPO, literally (paper Eq. 8)
    `token_mean`        1 / Σ |y|                              DAPO as usually run
    `seq_sum`           1 / N                                  the unbiased policy gradient
    `constant`          1 / (N · L_max)                        Dr.GRPO
    ==================  =====================================  ===============================================

    Args:
        response_mask: (B, R) bool; for `group_token_mean` with all members of each group.
        group_ids: (B,) long.
        reduction: one of the names above.
        totals: N, Σ|y| and the number of groups over the whole optimizer batch.
        max_length: L_max in tokens; `constant` alone needs it.

    Returns:
        (B, R) float64. Over the whole batch `seq_mean`, `group_token_mean` and `token_mean` sum to 1.

    Raises:
        ValueError: for an unknown reduction, or `constant` without `max_length`.

    Example:
        >>> mask = torch.tensor([[True, True], [True, False]])
        >>> groups = torch.tensor([0, 0])
        >>> token_weights(mask, groups, "seq_mean", batch_totals(mask, groups))
        tensor([[0.2500, 0.2500],
                [0.5000, 0.0000]], dtype=torch.float64)
    """
    lengths = response_mask.sum(1).clamp(min=1).double()
    if reduction == "seq_mean":
        per_row = 1 / (totals.sequences * lengths)
    elif reduction == "group_token_mean":
        _, member = group_ids.unique(return_inverse=True)
        group_tokens = torch.zeros_like(lengths).index_add(0, member, response_mask.sum(1).double())
        per_row = 1 / (totals.groups * group_tokens[member].clamp(min=1))
    elif reduction == "token_mean":
        per_row = (1 / totals.tokens).expand_as(lengths)
    elif reduction == "seq_sum":
        per_row = (1 / totals.sequences).expand_as(lengths)
    elif reduction == "constant":
        if not max_length:
            raise ValueError("the reduction 'constant' divides by L_max: give max_length")
        per_row = (1 / (totals.sequences * max_length)).expand_as(lengths)
    else:
        raise ValueError(f"unknown reduction {reduction!r}; choose one of {', '.join(get_args(Reduction))}")
    return torch.where(response_mask, per_row.unsqueeze(1), 0.0)

"""Advantages from rewards."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

AdvantageScale = Literal["std", "none", "batch"]


class _GroupStatistics(NamedTuple):
    """Per row, what its group's scored members say: (B,) each."""

    size: Tensor
    mean: Tensor
    spread: Tensor  # max − min


def _group_statistics(rewards: Tensor, member: Tensor, scored: Tensor) -> _GroupStatistics:
    groups = int(member.max()) + 1
    kept, kept_member = rewards[scored], member[scored]
    zeros = rewards.new_zeros(groups)
    count = zeros.index_add(0, kept_member, torch.ones_like(kept))
    mean = zeros.index_add(0, kept_member, kept) / count.clamp(min=1)
    highest = zeros.scatter_reduce(0, kept_member, kept, "amax", include_self=False)
    lowest = zeros.scatter_reduce(0, kept_member, kept, "amin", include_self=False)
    return _GroupStatistics(count[member], mean[member], (highest - lowest)[member])


def group_normalize(
    rewards: Tensor,
    group_ids: Tensor,
    scored: Tensor | None = None,
    scale: AdvantageScale = "std",
    eps: float = 1e-6,
    ddof: int = 1,
    batch_std: Tensor | None = None,
) -> Tensor:
    """Return the group-relative advantage A_i = (r_i − mean(r_group)) / (std(r_group) + eps).

    A group without spread (all rewards equal, or fewer than two scored) gets exactly 0, whatever the rounding of its
    mean. Unscored rows are left out of their group's mean and deviation and get 0.

    Args:
        rewards: (B,) float.
        group_ids: (B,) long; the members of a group need not be neighbours.
        scored: (B,) bool, False where a reward failed; all True if not given.
        scale: `std` divides by the group's deviation, `batch` by that of all scored rewards, `none` by nothing.
        eps: added to the deviation, in units of reward.
        ddof: what the divisor of the variance lacks: 1 is the unbiased variance, 0 the population's. The paper does
            not say; verl and TRL use 1. It only rescales, by sqrt((G−1)/G).
        batch_std: scalar, for `batch` when the batch is spread over ranks; otherwise computed here.

    Returns:
        (B,) in units of deviations (`std`, `batch`) or of reward (`none`).

    Source: DeepSeekMath (arXiv 2402.03300), section 4.1.2, outcome supervision; `none` is Dr.GRPO (2503.20783),
    `batch` is Lite-PPO (2508.08221).

    Example:
        >>> group_normalize(torch.tensor([1.0, 0.0, 5.0, 5.0]), torch.tensor([0, 0, 1, 1]), eps=0.0)
        tensor([ 0.7071, -0.7071,  0.0000,  0.0000])
    """
    scored = torch.ones_like(rewards, dtype=torch.bool) if scored is None else scored
    rewards = torch.where(scored, rewards, 0)
    _, member = group_ids.unique(return_inverse=True)
    group = _group_statistics(rewards, member, scored)
    centred = torch.where(scored & (group.spread > 0), rewards - group.mean, 0)
    if scale == "none":
        return centred
    if scale == "batch":
        deviation = rewards[scored].std(correction=ddof) if batch_std is None else batch_std
    else:
        squares = torch.zeros_like(rewards).index_add(0, member, centred.square())[member]
        deviation = (squares / (group.size - ddof).clamp(min=1)).sqrt()
    return torch.where(centred == 0, 0, centred / (deviation + eps))


def gae(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    gamma: float = 1.0,
    gae_lambda: float = 0.95,
    bootstrap_values: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the generalized advantage estimate A_t = Σ_l (γλ)^l δ_{t+l} and the value target R̂_t = A_t + V_t.

    δ_t = r_t + γ V_{t+1} − V_t over the tokens of a response; the last one's V_{t+1} is 0, or `bootstrap_values`.
    λ = 0 gives δ, and λ = 1 the discounted sum of what is still to come, less V.

    Args:
        rewards: r_t, (B, R), of taking token t.
        values: V_t, (B, R), of the state *before* token t.
        mask: (B, R) bool, the tokens that count; nothing outside it is read, so it may be NaN, and what lies between two
            tokens that count takes no time.
        gamma: γ in [0, 1].
        gae_lambda: λ in [0, 1].
        bootstrap_values: (B,) V after the last token, where a response did not end there; 0 if not given.

    Returns:
        A and R̂, (B, R) each, in units of reward, 0 outside the mask.

    Source: Schulman et al. (arXiv 1506.02438) Eq. 16. With T − 1 the last token the last term is (γλ)^{T−t−1} δ_{T−1}: the
    T − t + 1 that the notebook prints is a misprint of PPO's (1707.06347) Eq. 11, since δ_{T−1} is T − 1 − t steps ahead.

    Example:
        >>> gae(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.25]]), torch.tensor([[True, True]]), gae_lambda=0.5)
        (tensor([[0.1250, 0.7500]]), tensor([[0.6250, 1.0000]]))
    """
    rewards, values = torch.where(mask, rewards, 0), torch.where(mask, values, 0)
    next_value = values.new_zeros(len(values)) if bootstrap_values is None else bootstrap_values
    advantage = torch.zeros_like(next_value)
    columns = []
    for t in reversed(range(mask.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = torch.where(mask[:, t], delta + gamma * gae_lambda * advantage, advantage)
        next_value = torch.where(mask[:, t], values[:, t], next_value)
        columns.append(advantage)
    advantages = torch.where(mask, torch.stack(columns[::-1], 1), 0)
    return advantages, torch.where(mask, advantages + values, 0)

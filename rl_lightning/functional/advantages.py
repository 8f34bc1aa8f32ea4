"""Advantages from rewards: group-relative (GRPO) and generalized advantage estimation (PPO)."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

AdvantageScale = Literal["std", "batch", "mean", "none"]
Baseline = Literal["mean", "others", "length"]


class _GroupStatistics(NamedTuple):
    """Statistics of each row's group over the members whose reward did not fail: (B,) each."""

    size: Tensor  # scored members
    mean: Tensor  # of their rewards
    spread: Tensor  # largest reward − smallest


def _group_statistics(rewards: Tensor, member: Tensor, scored: Tensor) -> _GroupStatistics:
    # member 0 0 1 1 2 : the group of each row, numbered from 0. Sums go into one slot per group, (groups,), and
    # x[member] spreads them back over the rows, (B,).
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
    baseline: Baseline = "mean",
    lengths: Tensor | None = None,
) -> Tensor:
    """Return the group-relative advantage A_i = (r_i − mean(r_group)) / (std(r_group) + eps), or with another baseline or scale.

    A group whose rewards are all equal, or that has fewer than two scored rows, gets exactly 0: rounding of the mean does not
    leak through. Unscored rows do not enter the group's mean and standard deviation, and get 0.

    Args:
        rewards: (B,) float.
        group_ids: (B,) long; the members of a group need not be neighbours.
        scored: (B,) bool, False where a reward failed; all True if None.
        scale: `std` divides by the group's standard deviation, `batch` by that of all scored rewards, `mean` by the group's
            mean reward, `none` by nothing.
        eps: added to what is divided by, in units of reward.
        ddof: the variance of n rewards has the divisor n − ddof: 1 gives the unbiased variance, 0 the population variance.
            The paper does not say which; verl and TRL use 1. The choice rescales all advantages by sqrt((G−1)/G).
        batch_std: scalar, the standard deviation over all ranks, for `batch` on several ranks; computed from `rewards` if None.
        baseline: what is taken off a reward: the `mean` of the group's rewards, its own among them; the mean of the `others`,
            which is n/(n − 1) times as much in all; or the mean weighted by `length`, Σ_j L_j r_j / Σ_j L_j.
        lengths: (B,) in tokens, for the baseline `length`.

    Returns:
        (B,) in standard deviations (`std`, `batch`), in units of reward (`none`) or without a unit (`mean`).

    Source: DeepSeekMath (arXiv 2402.03300), section 4.1.2, outcome supervision; `none` is Dr.GRPO (2503.20783),
    `batch` is Lite-PPO (2508.08221), `mean` is MaxRL (2602.02710); `others` with `none` is RLOO (2402.14740), `length` with
    `none` is OPO (2505.23585).

    Example:
        >>> group_normalize(torch.tensor([1.0, 0.0, 5.0, 5.0]), torch.tensor([0, 0, 1, 1]), eps=0.0)
        tensor([ 0.7071, -0.7071,  0.0000,  0.0000])
    """
    scored = torch.ones_like(rewards, dtype=torch.bool) if scored is None else scored
    rewards = torch.where(scored, rewards, 0)
    _, member = group_ids.unique(return_inverse=True)
    group = _group_statistics(rewards, member, scored)
    expected = group.mean
    if baseline == "length":
        assert lengths is not None, "the baseline 'length' needs lengths"
        share = torch.where(scored, lengths, 0).to(rewards)
        sums = rewards.new_zeros(2, len(rewards)).index_add(1, member, torch.stack([share * rewards, share]))
        expected = (sums[0] / sums[1].clamp(min=1))[member]
    centred = torch.where(scored & (group.spread > 0), rewards - expected, 0)
    if baseline == "others":
        centred = centred * group.size / (group.size - 1).clamp(min=1)
    if scale == "none":
        return centred
    if scale == "mean":
        deviation = group.mean
    elif scale == "batch":
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
    gae_lambda: float | Tensor = 0.95,
    bootstrap_values: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the generalized advantage estimate A_t = Σ_l (γλ)^l δ_{t+l} and the value target R̂_t = A_t + V_t.

    δ_t = r_t + γ V_{t+1} − V_t over the tokens of a response. After the last token V is 0, or `bootstrap_values`.
    At λ = 0, A_t = δ_t. At λ = 1, A_t is the discounted return from t on, minus V_t.

    Args:
        rewards: r_t, (B, R), the reward for token t.
        values: V_t, (B, R), the value of the state *before* token t.
        mask: (B, R) bool, the tokens that count. Entries outside it are never read, so they may be NaN. A gap between two
            counted tokens is skipped: it adds no discount.
        gamma: γ in [0, 1].
        gae_lambda: λ in [0, 1]; (B,) where it is not the same for all responses.
        bootstrap_values: (B,) V after the last token, for responses that were cut off; 0 if None.

    Returns:
        A and R̂, (B, R) each, in units of reward, 0 outside the mask.

    Source: Schulman et al. (arXiv 1506.02438) Eq. 16. With the tokens 0 … T − 1 the last term is (γλ)^{T−t−1} δ_{T−1}. The
    notebook prints the exponent T − t + 1, which is a misprint in PPO (1707.06347) Eq. 11: δ_{T−1} is T − 1 − t steps ahead.

    Example:
        >>> gae(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.25]]), torch.tensor([[True, True]]), gae_lambda=0.5)
        (tensor([[0.1250, 0.7500]]), tensor([[0.6250, 1.0000]]))
    """
    # From the last column to the first, one column of all rows at a time:
    #   t            0     1     2     3
    #   mask         1     1     0     1        column 2 does not count:
    #   next_value   V_1   V_3   –     0        for token 1 the next state is that of token 3.
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

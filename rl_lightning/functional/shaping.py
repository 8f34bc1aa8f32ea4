"""Changes of rewards: by the length of the response, and by how far the policy has gone."""

from __future__ import annotations

import torch
from torch import Tensor


def less_divergence(rewards: Tensor, penalties: Tensor | None) -> Tensor:
    """Return rewards less what the divergence costs; nothing else takes it off a reward.

    Args:
        rewards: of responses, (B,), or of tokens, (B, R).
        penalties: β times the estimated divergence of each token, (B, R), 0 where none counts; None where it does not act in
            the reward.

    Returns:
        (B,) less the sum of a response's penalties, or (B, R) less each token's own.
    """
    if penalties is None:
        return rewards
    return rewards - (penalties if rewards.dim() == 2 else penalties.sum(1).to(rewards))


def overlong_penalty(lengths: Tensor, max_length: int, cache_length: int) -> Tensor:
    """Return R_length: 0, then a ramp down to −1 over the last `cache_length` tokens, then −1.

    R_length = 0 for |y| ≤ L_max − L_cache; (L_max − L_cache − |y|) / L_cache up to L_max; −1 beyond. With
    `cache_length` 0 it is a step at L_max.

    Args:
        lengths: (B,) |y| in tokens, the stop token included.
        max_length: L_max in tokens.
        cache_length: L_cache in tokens, from 0 to L_max.

    Returns:
        (B,) float in [−1, 0], in units of reward.

    Source: DAPO (arXiv 2503.14476) Eq. 13. At |y| = L_max the ramp has reached −1 already.

    Example:
        >>> overlong_penalty(torch.tensor([6, 8, 10, 11]), max_length=10, cache_length=4)
        tensor([ 0.0000, -0.5000, -1.0000, -1.0000])
    """
    if not 0 <= cache_length <= max_length:
        raise ValueError(f"cache_length must lie between 0 and max_length={max_length}, not {cache_length}")
    if cache_length == 0:
        return -(lengths > max_length).to(torch.get_default_dtype())
    return ((max_length - cache_length - lengths) / cache_length).clamp(-1.0, 0.0)

"""Terms that are subtracted from rewards: the divergence from the reference, and the penalty on overlong responses."""

from __future__ import annotations

import torch
from torch import Tensor


def less_divergence(rewards: Tensor, penalties: Tensor | None) -> Tensor:
    """Return rewards minus β times the divergence from the reference.

    Args:
        rewards: one per response, (B,), or one per token, (B, R).
        penalties: β times the estimated divergence of each token, (B, R), 0 on tokens that do not count; None if the divergence
            does not act in the reward.

    Returns:
        (B,): minus the sum of the response's penalties. (B, R): minus each token's penalty.
    """
    if penalties is None:
        return rewards
    return rewards - (penalties if rewards.dim() == 2 else penalties.sum(1).to(rewards))


def overlong_penalty(lengths: Tensor, max_length: int | Tensor, cache_length: int) -> Tensor:
    """Return R_length: 0, then a ramp down to −1 over the last `cache_length` tokens, then −1.

    R_length = 0 for |y| ≤ L_max − L_cache; (L_max − L_cache − |y|) / L_cache up to |y| = L_max; −1 beyond. With
    `cache_length` 0 it is a step: 0 up to L_max, −1 beyond.

    Args:
        lengths: (B,) |y| in tokens, the stop token included.
        max_length: L_max in tokens; (B,) where it is not the same for all responses.
        cache_length: L_cache in tokens, from 0 to L_max. Where a response's own L_max is lower, its ramp begins at 0 tokens.

    Returns:
        (B,) float in [−1, 0], in units of reward.

    Raises:
        ValueError: for a `cache_length` out of range.

    Source: DAPO (arXiv 2503.14476) Eq. 13. The ramp reaches −1 at |y| = L_max.

    Example:
        >>> overlong_penalty(torch.tensor([6, 8, 10, 11]), max_length=10, cache_length=4)
        tensor([ 0.0000, -0.5000, -1.0000, -1.0000])
    """
    if cache_length < 0 or (isinstance(max_length, int) and cache_length > max_length):
        raise ValueError(f"cache_length must lie between 0 and max_length={max_length}, not {cache_length}")
    if cache_length == 0:
        return -(lengths > max_length).to(torch.get_default_dtype())
    if isinstance(max_length, int):
        return ((max_length - cache_length - lengths) / cache_length).clamp(-1.0, 0.0)
    cache = max_length.clamp(max=cache_length)
    return ((max_length - cache - lengths) / cache).clamp(-1.0, 0.0)

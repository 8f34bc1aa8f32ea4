"""Weights for responses of a sampler that is not quite the policy."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

RatioLevel = Literal["token", "sequence"]
RatioBound = Literal["truncate", "mask"]


def sampler_ratio(logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor, level: RatioLevel = "token") -> Tensor:
    """Return π/μ of what a sampler μ drew, by the policy π that the trainer computes.

    `sequence` is the ratio of whole responses, Π_t π(y_t | x, y_<t)/μ(y_t | x, y_<t), at each of their tokens. With it, and
    without a bound, a sum over samples of μ has the gradient of π's own in expectation; its variance grows with the length.
    `token` is the ratio of each token alone: it corrects how tokens are drawn, but not which prefixes they are drawn after,
    so it is exact for responses of one token, and to first order in the mismatch where the prefixes matter little.

    Args:
        logprobs: log π, (B, R), nats, without gradient.
        sampler_logprobs: log μ, (B, R), nats; a token without a finite one has the ratio 1.
        mask: (B, R) bool; which tokens were sampled. What stands elsewhere is never read.
        level: of what to take the ratio.

    Returns:
        (B, R) > 0, 1 outside the mask. It may overflow to infinity; `bounded_ratio` says what becomes of that.

    Raises:
        ValueError: for an unknown level.

    Source: Yao et al., Your Efficient RL Framework Secretly Brings You Off-Policy RL Training (2025), for tokens.
    """
    log_ratio = torch.where(mask, logprobs - known_or(sampler_logprobs, logprobs), 0)
    if level == "sequence":
        log_ratio = torch.where(mask, log_ratio.sum(1, keepdim=True), 0)
    elif level != "token":
        raise ValueError(f"unknown level {level!r}; choose one of {', '.join(get_args(RatioLevel))}")
    return log_ratio.exp()


def known_or(sampler_logprobs: Tensor, logprobs: Tensor) -> Tensor:
    """Return a sampler's log-probabilities, and another's where the sampler gave none.

    Args:
        sampler_logprobs: log μ, nats; not finite where an engine did not say it, or said what cannot be: that it drew a token of
            probability 0.
        logprobs: what stands in, nats, same shape.
    """
    return torch.where(sampler_logprobs.isfinite(), sampler_logprobs.to(logprobs), logprobs)


def bounded_ratio(ratio: Tensor, bound: RatioBound, cap: float) -> Tensor:
    """Return importance weights that cannot grow beyond a cap.

    `truncate` is min(ρ, C): biased where ρ > C, but every token keeps a weight. `mask` is ρ where 1/C ≤ ρ ≤ C, and 0 elsewhere:
    what the two models disagree on beyond C teaches nothing. At C = ∞ both are ρ itself.

    Args:
        ratio: ρ = π/μ > 0, any shape.
        bound: what happens beyond the cap.
        cap: C ≥ 1.

    Returns:
        Same shape, between 0 and C.

    Raises:
        ValueError: for an unknown bound.

    Source: `truncate`: Yao et al. (2025), and Ionides, Truncated Importance Sampling (2008); `mask`: IcePop (Ling team, 2025),
        whose two bounds are independent, where ours are C and 1/C.

    Example:
        >>> bounded_ratio(torch.tensor([0.25, 0.5, 4.0]), "mask", cap=2.0)
        tensor([0.0000, 0.5000, 0.0000])
    """
    if bound == "truncate":
        return ratio.clamp(max=cap)
    if bound == "mask":
        return torch.where((ratio >= 1 / cap) & (ratio <= cap), ratio, 0)
    raise ValueError(f"unknown bound {bound!r}; choose one of {', '.join(get_args(RatioBound))}")

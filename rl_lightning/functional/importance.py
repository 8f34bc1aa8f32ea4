"""Importance weights for responses whose sampler μ differs slightly from the policy π, such as a copy in another engine."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

RatioLevel = Literal["token", "sequence"]
RatioBound = Literal["truncate", "mask"]


def sampler_ratio(logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor, level: RatioLevel = "token") -> Tensor:
    """Return the importance ratio π/μ of sampled tokens or responses.

    `sequence`: the ratio of the whole response, Π_t π(y_t | x, y_<t)/μ(y_t | x, y_<t), at each of its tokens. Without a bound
    it makes a gradient estimate from samples of μ unbiased for π. Its variance grows with the length.
    `token`: the ratio of each token alone. It corrects the distribution of a token given its prefix, but not the distribution
    of prefixes. It is exact for responses of one token; for longer ones the bias is of first order in the mismatch of prefixes.

    Args:
        logprobs: log π, (B, R), nats, without gradient, as the trainer computes it.
        sampler_logprobs: log μ, (B, R), nats, as the sampler reported it; a token without a finite one has the ratio 1.
        mask: (B, R) bool; the sampled tokens. Entries outside it are never read.
        level: `token` or `sequence`.

    Returns:
        (B, R) > 0, and 1 outside the mask. It may overflow to infinity; `bounded_ratio` handles that.

    Raises:
        ValueError: for an unknown level.

    Source: Yao et al., Your Efficient RL Framework Secretly Brings You Off-Policy RL Training (2025), for `token`.
    """
    log_ratio = torch.where(mask, logprobs - known_or(sampler_logprobs, logprobs), 0)
    if level == "sequence":
        log_ratio = torch.where(mask, log_ratio.sum(1, keepdim=True), 0)
    elif level != "token":
        raise ValueError(f"unknown level {level!r}; choose one of {', '.join(get_args(RatioLevel))}")
    return log_ratio.exp()


def known_or(sampler_logprobs: Tensor, logprobs: Tensor) -> Tensor:
    """Return the sampler's log-probabilities with the missing ones replaced by the trainer's.

    Args:
        sampler_logprobs: log μ, nats. An entry is missing if it is not finite: the engine reported none, or −∞, which is
            impossible for a token that it drew.
        logprobs: the replacement, nats, same shape.

    Returns:
        Same shape, in the dtype and on the device of `logprobs`.
    """
    return torch.where(sampler_logprobs.isfinite(), sampler_logprobs.to(logprobs), logprobs)


def bounded_ratio(ratio: Tensor, bound: RatioBound, cap: float) -> Tensor:
    """Return importance weights of at most C.

    `truncate`: min(ρ, C). It is biased where ρ > C, and every token keeps a weight.
    `mask`: ρ where 1/C ≤ ρ ≤ C, and 0 elsewhere. Tokens on which the two models disagree by more than C get no gradient.
    At C = ∞ both return ρ.

    Args:
        ratio: ρ = π/μ > 0, any shape.
        bound: `truncate` or `mask`.
        cap: C ≥ 1.

    Returns:
        Same shape, between 0 and C.

    Raises:
        ValueError: for an unknown bound.

    Source: `truncate`: Yao et al. (2025), and Ionides, Truncated Importance Sampling (2008). `mask`: IcePop (Ling team, 2025),
        which has two independent bounds; here they are C and 1/C.

    Example:
        >>> bounded_ratio(torch.tensor([0.25, 0.5, 4.0]), "mask", cap=2.0)
        tensor([0.0000, 0.5000, 0.0000])
    """
    if bound == "truncate":
        return ratio.clamp(max=cap)
    if bound == "mask":
        return torch.where((ratio >= 1 / cap) & (ratio <= cap), ratio, 0)
    raise ValueError(f"unknown bound {bound!r}; choose one of {', '.join(get_args(RatioBound))}")

"""Importance weights for responses whose sampler μ differs slightly from the policy π, such as a copy in another engine."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

RatioLevel = Literal["token", "sequence", "sequence_mean"]
RatioBound = Literal["truncate", "mask"]


def at_level(log_ratio: Tensor, mask: Tensor, level: RatioLevel) -> Tensor:
    """Return the logarithm of a ratio of probabilities, of the token or of the whole response that it is part of.

    Args:
        log_ratio: of single tokens, (B, R), nats. Entries outside the mask are never read.
        mask: (B, R) bool.
        level: `token`; `sequence`, the sum over the response, log Π_t ρ_t; or `sequence_mean`, the mean over its tokens, the
            logarithm of the geometric mean of ρ_t.

    Returns:
        (B, R) in nats, 0 outside the mask.

    Raises:
        ValueError: for an unknown level.

    Example:
        >>> at_level(torch.tensor([[1.0, 3.0]]), torch.tensor([[True, True]]), "sequence_mean")
        tensor([[2., 2.]])
    """
    if level not in get_args(RatioLevel):
        raise ValueError(f"unknown level {level!r}; choose one of {', '.join(get_args(RatioLevel))}")
    log_ratio = torch.where(mask, log_ratio, 0)
    if level == "token":
        return log_ratio
    whole = log_ratio.sum(1, keepdim=True)
    if level == "sequence_mean":
        whole = whole / mask.sum(1, keepdim=True).clamp(min=1)
    return torch.where(mask, whole, 0)


def sampler_ratio(logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor, level: RatioLevel = "token") -> Tensor:
    """Return the importance ratio π/μ of sampled tokens or responses.

    `sequence`: the ratio of the whole response, Π_t π(y_t | x, y_<t)/μ(y_t | x, y_<t), at each of its tokens. Without a bound
    it makes a gradient estimate from samples of μ unbiased for π. Its variance grows with the length.
    `token`: the ratio of each token alone. It corrects the distribution of a token given its prefix, but not the distribution
    of prefixes. It is exact for responses of one token; for longer ones the bias is of first order in the mismatch of prefixes.
    `sequence_mean`: the geometric mean of the response's token ratios, at each of its tokens. It is no importance weight, but
    says how far a whole response is from the policy, whatever its length: bounds near 1 then tell responses apart.

    Args:
        logprobs: log π, (B, R), nats, without gradient, as the trainer computes it.
        sampler_logprobs: log μ, (B, R), nats, as the sampler reported it; a token without a finite one has the ratio 1.
        mask: (B, R) bool; the sampled tokens. Entries outside it are never read.
        level: `token`, `sequence` or `sequence_mean`.

    Returns:
        (B, R) > 0, and 1 outside the mask. It may overflow to infinity; `bounded_ratio` handles that.

    Raises:
        ValueError: for an unknown level.

    Source: Yao et al., Your Efficient RL Framework Secretly Brings You Off-Policy RL Training (2025), for `token`.
    """
    return at_level(logprobs - known_or(sampler_logprobs, logprobs), mask, level).exp()


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


def bounded_ratio(ratio: Tensor, bound: RatioBound, cap: float, floor: float | None = None) -> Tensor:
    """Return importance weights of at most C.

    `truncate`: min(ρ, C), and at least the floor c, if there is one. It is biased where ρ > C, and every token keeps a weight.
    `mask`: ρ where c ≤ ρ ≤ C, and 0 elsewhere. Tokens on which the two models disagree by more get no gradient.
    At C = ∞ without a floor both return ρ.

    Args:
        ratio: ρ = π/μ > 0, any shape.
        bound: `truncate` or `mask`.
        cap: C ≥ 1.
        floor: c in [0, 1]; if None, 1/C for `mask`, and none for `truncate`.

    Returns:
        Same shape, between 0 and C.

    Raises:
        ValueError: for an unknown bound.

    Source: `truncate`: Yao et al. (2025), and Ionides, Truncated Importance Sampling (2008). `mask`: IcePop (arXiv 2510.18855),
        whose bounds are 0.5 and 5.

    Example:
        >>> bounded_ratio(torch.tensor([0.25, 0.5, 4.0]), "mask", cap=2.0)
        tensor([0.0000, 0.5000, 0.0000])
    """
    if bound == "truncate":
        return ratio.clamp(floor, cap)
    if bound == "mask":
        return torch.where((ratio >= (1 / cap if floor is None else floor)) & (ratio <= cap), ratio, 0)
    raise ValueError(f"unknown bound {bound!r}; choose one of {', '.join(get_args(RatioBound))}")

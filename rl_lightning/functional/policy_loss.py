"""The probability ratio of two policies, and the clipped surrogate that PPO, GRPO and DAPO share."""

from __future__ import annotations

import torch
from torch import Tensor


def probability_ratio(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """Return ρ = π_θ/π_old per token; its gradient in log π_θ is ρ, and 0 where ρ overflows to infinity.

    Without the exception, a clip on an infinite ρ would have the gradient 0 · ∞ = NaN.

    Args:
        logprobs: log π_θ, nats, with gradient.
        old_logprobs: log π_old, nats, same shape.

    Returns:
        Same shape, at least 0; infinity for log ρ > 88.7 in float32.
    """
    log_ratio = logprobs - old_logprobs
    overflows = log_ratio.detach().exp().isinf()
    return torch.where(overflows, torch.inf, torch.where(overflows, 0, log_ratio).exp())


def clipped_surrogate(
    ratio: Tensor,
    advantages: Tensor,
    clip_low: float = 0.2,
    clip_high: float | None = None,
    dual_clip: float | None = None,
) -> Tensor:
    """Return S(ρ, A) = min(ρ A, clip(ρ, 1 − ε_low, 1 + ε_high) A) per token, to be maximised.

    The gradient in ρ is A, and 0 where the clip binds: A > 0 and ρ > 1 + ε_high, or A < 0 and ρ < 1 − ε_low. A clip binds
    only beyond its bound: at the bound itself, where S has a kink, the gradient is A. This is fixed here because the gradients
    of torch's `clamp` and `minimum` at a kink differ between versions.

    Args:
        ratio: ρ = π_θ/π_old, (B, R), with gradient; see `probability_ratio`. It may be infinite: S is then finite where a clip
            binds or A = 0, and −∞ where A < 0 without a dual clip.
        advantages: A, broadcastable to the ratio, without gradient.
        clip_low: ε_low in [0, 1].
        clip_high: ε_high ≥ 0; `clip_low` if None (PPO and GRPO; DAPO raises it).
        dual_clip: c > 1: for A < 0 the result is at least c A, so a token with ρ > c has no gradient. If None, the gradient of
            such a token is not bounded.

    Returns:
        (B, R), in units of the advantage.

    Source: PPO (arXiv 1707.06347) Eq. 7; two bounds: DAPO (2503.14476) Eq. 8; dual clip: Ye et al. (1912.09729) Eq. 7.

    Example:
        >>> clipped_surrogate(torch.tensor([1.5]), torch.tensor([1.0]), clip_low=0.2)
        tensor([1.2000])
    """
    clip_high = clip_low if clip_high is None else clip_high
    held = torch.where((advantages >= 0) & (ratio > 1 + clip_high), 1 + clip_high, ratio)
    held = torch.where((advantages < 0) & (held < 1 - clip_low), 1 - clip_low, held)
    if dual_clip is not None:
        held = torch.where((advantages < 0) & (held > dual_clip), dual_clip, held)
    return held * advantages

"""The probability ratio of two policies, and the surrogates that are made of it: clipped, weighted and soft."""

from __future__ import annotations

import torch
from torch import Tensor

from rl_lightning.functional.importance import RatioLevel, at_level


def probability_ratio(
    logprobs: Tensor, old_logprobs: Tensor, mask: Tensor | None = None, level: RatioLevel = "token"
) -> Tensor:
    """Return ρ = π_θ/π_old at each token; its gradient in the token's log π_θ is ρ, and 0 where ρ overflows to infinity.

    Without the exception, a clip on an infinite ρ would have the gradient 0 · ∞ = NaN.

    The value is that of the level, the gradient always the token's: ∇ρ_t = ρ_t ∇ log π_θ(y_t). Where all tokens of a response
    have one advantage, a mean over them has then the gradient of the response's own ratio.

    Args:
        logprobs: log π_θ, nats, with gradient.
        old_logprobs: log π_old, nats, same shape.
        mask: bool, same shape, (B, R); levels of whole responses need it.
        level: whose ratio: the `token`'s; the response's, Π_t ρ_t (`sequence`); or its |y|-th root, the geometric mean of the
            tokens' (`sequence_mean`, s(y) of GSPO).

    Returns:
        Same shape, at least 0; infinity for log ρ > 88.7 in float32.

    Source: GSPO (arXiv 2507.18071) Eq. 7; a gradient token by token, its Eq. 14 and 15.
    """
    log_ratio = logprobs - old_logprobs
    if level != "token":
        assert mask is not None, "the ratio of a response needs to know which tokens it has"
        # What is in parentheses is exactly 0: bounds are as near to 1 as 3e-4, and what a sum rounds off would show.
        nothing = torch.where(log_ratio.isfinite(), log_ratio - log_ratio.detach(), 0)
        log_ratio = at_level(log_ratio.detach(), mask, level) + nothing
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


def weighted_surrogate(logprobs: Tensor, advantages: Tensor, weight: Tensor) -> Tensor:
    """Return a term per token that is worth w A and whose gradient is w A ∇ log π_θ: no clip takes it away.

    w = 1 is REINFORCE, w = ρ the same corrected for π_old, w = clip(ρ) CISPO. Papers write sg(w) A log π_θ, which has the same
    gradient; its value would not be comparable with that of the clipped surrogate.

    Args:
        logprobs: log π_θ, (B, R), nats, with gradient.
        advantages: A, broadcastable to them, without gradient.
        weight: w, same shape; no gradient goes through it. A term whose weight overflows to infinity is 0 and has no gradient,
            as a ratio that overflows has none.

    Returns:
        (B, R), in units of the advantage.

    Source: CISPO (arXiv 2506.13585) Eq. 4.

    Example:
        >>> weighted_surrogate(torch.tensor([-2.0]), torch.tensor([3.0]), torch.tensor([0.5]))
        tensor([1.5000])
    """
    scale = torch.where((advantages == 0) | weight.isinf(), 0, weight.detach() * advantages)
    return scale * (1 + (logprobs - logprobs.detach()))


def soft_surrogate(ratio: Tensor, advantages: Tensor, tau_up: float, tau_down: float) -> Tensor:
    """Return (4/τ) σ(τ (ρ − 1)) A per token, to be maximised, with τ_up where A > 0 and τ_down elsewhere.

    The gradient in ρ is A sech²(τ (ρ − 1)/2): A at ρ = 1, fading smoothly on both sides where a clip would cut it off.

    Args:
        ratio: ρ, (B, R), with gradient; see `probability_ratio`.
        advantages: A, broadcastable to it, without gradient.
        tau_up, tau_down: τ > 0; how fast the gradient fades.

    Returns:
        (B, R), in units of the advantage; 2 A/τ at ρ = 1.

    Source: SAPO (arXiv 2511.20347).

    Example:
        >>> soft_surrogate(torch.tensor([1.0]), torch.tensor([1.0]), tau_up=1.0, tau_down=1.05)
        tensor([2.])
    """
    tau = torch.where(advantages > 0, ratio.new_tensor(tau_up), ratio.new_tensor(tau_down))
    return 4 / tau * torch.sigmoid(tau * (ratio - 1)) * advantages

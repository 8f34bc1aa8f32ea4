"""The clipped surrogate that PPO, GRPO and DAPO share."""

from __future__ import annotations

import torch
from torch import Tensor


def clipped_surrogate(
    ratio: Tensor,
    advantages: Tensor,
    clip_low: float = 0.2,
    clip_high: float | None = None,
    dual_clip: float | None = None,
) -> Tensor:
    """Return S(ρ, A) = min(ρ A, clip(ρ, 1 − ε_low, 1 + ε_high) A) per token, to be maximised.

    The gradient in ρ is A, and 0 where the clip binds: A > 0 and ρ > 1 + ε_high, or A < 0 and ρ < 1 − ε_low. At a
    bound exactly it is A (torch's clamp passes the gradient on there).

    Args:
        ratio: ρ = π_θ/π_old, (B, R), with gradient.
        advantages: A, broadcastable to the ratio, without gradient.
        clip_low: ε_low in [0, 1].
        clip_high: ε_high ≥ 0; the same as `clip_low` if not given (PPO and GRPO; DAPO raises it).
        dual_clip: c > 1, where given: for A < 0 the result is at least c A, so that a token whose ratio has grown beyond c
            pulls no more. Without it, such a token pulls the harder the larger ρ is.

    Returns:
        (B, R), in units of the advantage.

    Source: PPO (arXiv 1707.06347) Eq. 7; two bounds: DAPO (2503.14476) Eq. 8; dual clip: Ye et al. (1912.09729) Eq. 7.

    Example:
        >>> clipped_surrogate(torch.tensor([1.5]), torch.tensor([1.0]), clip_low=0.2)
        tensor([1.2000])
    """
    clip_high = clip_low if clip_high is None else clip_high
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages)
    if dual_clip is None:
        return surrogate
    return torch.where(advantages < 0, torch.maximum(surrogate, dual_clip * advantages), surrogate)

"""Estimators of the KL divergence between two policies from one sample a state, and what their gradients are."""

from __future__ import annotations

from torch import Tensor


def kl_k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Return k1 = log π/π_ref per token: unbiased for KL(π‖π_ref) when the tokens were sampled from π.

    As a *loss* it has no gradient in expectation (E[∇ log π] = 0); it belongs in the reward.

    Args:
        logprobs: log π, nats.
        ref_logprobs: log π_ref, nats, same shape.

    Returns:
        Nats, any sign.
    """
    return logprobs - ref_logprobs


def kl_k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Return k3 = D(π_ref/π), D(r) = r − log r − 1, per token: unbiased for KL(π‖π_ref), never negative.

    As a loss on samples of π its gradient is that of the *forward* divergence KL(π_ref‖π), which agrees with the
    reverse one near π_ref only: a departure that DeepSeekMath and the notebook share.

    Args:
        logprobs: log π, nats.
        ref_logprobs: log π_ref, nats, same shape.

    Returns:
        Nats ≥ 0. It overflows for log π_ref/π > 88 in float32, by design: a clamp would hide it and kill the gradient.

    Source: J. Schulman, Approximating KL divergence (2020); DeepSeekMath (arXiv 2402.03300) Eq. 4.
    """
    log_ratio = ref_logprobs - logprobs
    # expm1 keeps the digits that exp(x) − 1 − x loses near x = 0, where the divergence is tiny.
    return log_ratio.expm1() - log_ratio

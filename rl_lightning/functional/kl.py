"""Estimators of the KL divergence between two policies, from one sampled token per state, and their gradients."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

KLEstimator = Literal["k1", "k2", "k3", "k3_k2grad", "rho_k3"]


def kl_k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Return k1 = log π/π_ref per token, an unbiased estimate of KL(π‖π_ref) for tokens sampled from π.

    Use it in the reward. As a *loss* its expected gradient is zero, since E[∇ log π] = 0.

    Args:
        logprobs: log π, nats.
        ref_logprobs: log π_ref, nats, same shape.

    Returns:
        Nats, any sign.
    """
    return logprobs - ref_logprobs


def kl_k2(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Return k2 = (log π/π_ref)² / 2 per token, a biased estimate of KL(π‖π_ref) with the right gradient.

    As a loss on tokens sampled from π, its expected gradient is exactly that of KL(π‖π_ref).

    Args:
        logprobs: log π, nats.
        ref_logprobs: log π_ref, nats, same shape.

    Returns:
        Nats² ≥ 0.

    Source: J. Schulman, Approximating KL divergence (2020).
    """
    return (logprobs - ref_logprobs).square() / 2


def kl_k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Return k3 = D(π_ref/π), D(r) = r − log r − 1, per token, an unbiased estimate of KL(π‖π_ref) that is never negative.

    As a loss on tokens sampled from π, its expected gradient is that of the other direction, KL(π_ref‖π). The two agree near
    π_ref only. DeepSeekMath and the notebook use it in the loss all the same.

    Args:
        logprobs: log π, nats.
        ref_logprobs: log π_ref, nats, same shape.

    Returns:
        Nats ≥ 0. It overflows to infinity for log π_ref/π > 88 in float32; it is not clamped, since a clamp would hide that and
        set the gradient to zero.

    Source: J. Schulman, Approximating KL divergence (2020); DeepSeekMath (arXiv 2402.03300) Eq. 4.
    """
    log_ratio = ref_logprobs - logprobs
    # expm1 keeps the digits that exp(x) − 1 − x loses near x = 0, where the divergence is tiny.
    return log_ratio.expm1() - log_ratio


def kl_penalty(logprobs: Tensor, ref_logprobs: Tensor, estimator: KLEstimator, log_ratio: Tensor) -> Tensor:
    """Return an estimate of KL(π‖π_ref) per token, as a term of a loss.

    Its expected gradient over tokens sampled from π_old is that of:

    ============  =====================================  ==========================================
    estimator     on policy (π_old = π)                  off policy
    ============  =====================================  ==========================================
    `k1`          nothing: zero in expectation           wrong
    `k2`          KL(π‖π_ref)                            wrong
    `k3`          KL(π_ref‖π), the other direction       wrong
    `k3_k2grad`   KL(π‖π_ref), with k3's value           wrong
    `rho_k3`      KL(π‖π_ref)                            KL(π‖π_ref)
    ============  =====================================  ==========================================

    Args:
        logprobs: log π with gradient, nats.
        ref_logprobs: log π_ref, nats, same shape.
        estimator: one of the names above.
        log_ratio: log ρ = log π/π_old with gradient, same shape; only `rho_k3` reads it.

    Returns:
        Nats (nats² for `k2`).

    Raises:
        ValueError: for an unknown name.

    Source: Tang and Munos (arXiv 2506.09477) for the gradients; DeepSeek-V3.2 for `rho_k3`.
    """
    if estimator == "k1":
        return kl_k1(logprobs, ref_logprobs)
    if estimator == "k2":
        return kl_k2(logprobs, ref_logprobs)
    k3 = kl_k3(logprobs, ref_logprobs)
    if estimator == "k3":
        return k3
    if estimator == "k3_k2grad":
        k2 = kl_k2(logprobs, ref_logprobs)
        return k2 + (k3 - k2).detach()
    if estimator == "rho_k3":
        # Where ρ would be infinite and k3 is 0, their product would be no number.
        most = math.log(torch.finfo(log_ratio.dtype).max) - 1
        return torch.where(log_ratio > most, most, log_ratio).exp() * k3
    raise ValueError(f"unknown estimator {estimator!r}; choose one of {', '.join(get_args(KLEstimator))}")

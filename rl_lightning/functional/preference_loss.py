"""Objectives of preference pairs: the Bradley–Terry model, and DPO built on it."""

from __future__ import annotations

import torch
from torch import Tensor


def bradley_terry(difference: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Return J = (1 − ε) log σ(z) + ε log σ(−z) per pair, to be maximised.

    σ(z) is the model's probability that the chosen response is the better one; ε is the probability that the label is wrong.
    The gradient in z is (1 − ε) σ(−z) − ε σ(z). With ε = 0 it is σ(−z); with ε > 0 it is zero at z = log((1 − ε)/ε).

    Args:
        difference: z, score of the chosen response minus score of the rejected one, any shape.
        label_smoothing: ε in [0, 0.5).

    Returns:
        The same shape, in nats, at most 0.

    Source: Bradley and Terry 1952; ε: Mitchell's note on conservative DPO (2023).

    Example:
        σ(0) = 1/2 and σ(log 3) = 3/4, so J is log 1/2 and log 3/4.

        >>> bradley_terry(torch.tensor([1.0, 3.0]).log())
        tensor([-0.6931, -0.2877])
    """
    right = torch.nn.functional.logsigmoid(difference)
    if not label_smoothing:
        return right
    return (1 - label_smoothing) * right + label_smoothing * torch.nn.functional.logsigmoid(-difference)


def dpo_objective(chosen: Tensor, rejected: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Return DPO's J = log σ(β m⁺ − β m⁻) per pair, to be maximised; see `bradley_terry` for label smoothing.

    Its gradient is β ς (∇m⁺ − ∇m⁻) with ς = σ(β m⁻ − β m⁺), one number per pair.

    Args:
        chosen, rejected: m⁺ and m⁻, (B/2,) nats: log π_θ/π_ref of each response, summed or averaged over its tokens.
        beta: β > 0.
        label_smoothing: ε in [0, 0.5).

    Returns:
        (B/2,) in nats.

    Source: Rafailov et al. (arXiv 2305.18290) Eq. 7, with sums; DeepSeekMath (2402.03300) A.1.4, with means.

    Example:
        β (m⁺ − m⁻) = 0.5 (1.2 + 0.8) = 1 and log σ(1) = −0.3133.

        >>> dpo_objective(torch.tensor([1.2]), torch.tensor([-0.8]), beta=0.5)
        tensor([-0.3133])
    """
    return bradley_terry(beta * (chosen - rejected), label_smoothing)


def robust_bradley_terry(difference: Tensor, label_smoothing: float) -> Tensor:
    """Return J = [(1 − ε) log σ(z) − ε log σ(−z)] / (1 − 2ε) per pair: the unbiased estimate of log σ(z) on the right labels.

    Its mean over a label that is turned round with probability ε is log σ(z). The gradient in z is
    [(1 − ε) σ(−z) + ε σ(z)] / (1 − 2ε), which never vanishes.

    Args:
        difference: z, any shape.
        label_smoothing: ε in [0, 0.5).

    Returns:
        The same shape, in nats.

    Source: Chowdhury et al. (arXiv 2403.00409) Eq. 12.

    Example:
        >>> robust_bradley_terry(torch.tensor([0.0]), label_smoothing=0.25)
        tensor([-0.6931])
    """
    right, wrong = torch.nn.functional.logsigmoid(difference), torch.nn.functional.logsigmoid(-difference)
    return ((1 - label_smoothing) * right - label_smoothing * wrong) / (1 - 2 * label_smoothing)


def log_odds(logprobs: Tensor) -> Tensor:
    """Return log p/(1 − p) from log p, its digits kept near p = 1 and near p = 0.

    Args:
        logprobs: log p < 0, any shape, nats. At 0 it is taken as just below: the odds stay finite.

    Returns:
        The same shape, nats.

    Source: ORPO (arXiv 2403.07691) Eq. 4.

    Example:
        >>> log_odds(torch.tensor([0.5, 0.75]).log())
        tensor([0.0000, 1.0986])
    """
    # The gradient of `clamp` at its bound differs between versions of torch; here it is the whole one.
    most = -torch.finfo(logprobs.dtype).eps
    logprobs = torch.where(logprobs > most, most, logprobs)
    return logprobs - (-logprobs.expm1()).log()

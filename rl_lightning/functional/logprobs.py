"""Log-probabilities of tokens and entropy of token distributions, from logits at the sampling temperature."""

from __future__ import annotations

import torch
from torch import Tensor


def _tempered(logits: Tensor, temperature: float) -> Tensor:
    """Return logits / τ in float32 or float64: in half precision a log-sum-exp has fewer than three correct digits."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits if temperature == 1.0 else logits / temperature


def logprobs_from_logits(logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """Return log π(token), π = softmax(logits / τ), the distribution that tokens were *sampled from*.

    Args:
        logits: (..., V), any float dtype.
        tokens: (...) long, indices into V.
        temperature: τ > 0 of the sampler. A ratio of probabilities at another temperature is no importance weight.

    Returns:
        (...) in nats, float32 (float64 if the logits are).

    Example:
        >>> logprobs_from_logits(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
        tensor([-0.6931])
    """
    logits = _tempered(logits, temperature)
    return logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)


def entropy_from_logits(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the entropy −Σ p log p of softmax(logits / τ).

    Args:
        logits: (..., V).
        temperature: τ > 0.

    Returns:
        (...) in nats, between 0 and log V.
    """
    logprobs = _tempered(logits, temperature).log_softmax(-1)
    # A token of probability 0 has the log-probability −inf, and 0 · −inf is NaN: clamp it, so that the token adds 0.
    return -(logprobs.exp() * logprobs.clamp(min=torch.finfo(logprobs.dtype).min)).sum(-1)

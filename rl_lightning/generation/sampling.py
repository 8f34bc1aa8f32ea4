"""Drawing tokens from logits, with a random stream of its own for every response."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rl_lightning.errors import UserError
from rl_lightning.functional import logprobs_from_logits
from rl_lightning.generation.base import Sampling, Stream

_BLOCK = 256


def uniforms(streams: Sequence[Stream], count: int) -> Tensor:
    """Return `count` uniform numbers in [0, 1) for each stream: (len(streams), count) float32.

    Philox is a counter-based generator: a number is a function of its key and position alone, so there is no state to
    save and nothing that another response could disturb.
    """
    mask = 2**64 - 1
    rows = [
        np.random.Generator(np.random.Philox(key=np.array([seed & mask, index & mask], dtype=np.uint64))).random(count)
        for seed, index in streams
    ]
    # The nearest float32 of the largest numbers is 1.
    return torch.from_numpy(np.stack(rows)).float().clamp(max=1 - 2**-24)


def inverse_cdf(probs: Tensor, uniform: Tensor) -> Tensor:
    """Return the first token whose cumulative probability exceeds the uniform number.

    A wide vocabulary is searched in two levels, block then token, which costs two short sums instead of a long one:
    1 ms against 50 for `torch.multinomial` at 32 rows of 49,152.

    Args:
        probs: (B, V), at least 0; in proportion to the probabilities.
        uniform: (B,) in [0, 1).

    Returns:
        (B,) long; never a token of probability 0.
    """
    vocabulary = probs.shape[1]
    if vocabulary <= _BLOCK:
        return _search(probs, uniform * probs.sum(1))
    missing = -vocabulary % _BLOCK
    blocks = (torch.nn.functional.pad(probs, (0, missing)) if missing else probs).unflatten(1, (-1, _BLOCK))
    mass = blocks.sum(2)
    target = uniform * mass.sum(1)
    block = _search(mass, target)
    before = running_sum(mass).gather(1, block[:, None])[:, 0] - mass.gather(1, block[:, None])[:, 0]
    inside = blocks[torch.arange(len(probs), device=probs.device), block]
    return (block * _BLOCK + _search(inside, target - before)).clamp(max=vocabulary - 1)


def running_sum(masses: Tensor) -> Tensor:
    """Return the sums of the first 1, 2, ... masses of each row, never falling, and rising with a mass above 0 only.

    With `torch.use_deterministic_algorithms` (`trainer.deterministic`) a GPU refuses to sum floats up like this, for the order of
    its additions differs from run to run. Whole numbers have one sum in any order: there masses are counted in shares of 2⁻⁵²
    of their row's total.

    Args:
        masses: (B, V) float, at least 0.
    """
    if masses.device.type == "cpu" or not torch.are_deterministic_algorithms_enabled():
        return masses.cumsum(1)
    return _whole_sums(masses)


def _whole_sums(masses: Tensor) -> Tensor:
    wide = masses.double()
    share = (wide.sum(1, keepdim=True) * 2.0**-52).clamp(min=torch.finfo(torch.float64).tiny)
    return ((wide / share).round().long().cumsum(1).double() * share).to(masses.dtype)


def _search(mass: Tensor, target: Tensor) -> Tensor:
    cumulative = running_sum(mass)
    # Rounding may carry a target up to the total or below zero; keep it where some token holds it.
    below_total = torch.nextafter(cumulative[:, -1], torch.zeros_like(cumulative[:, -1]))
    target = target.to(mass.dtype).clamp(min=0).minimum(below_total)
    # Where the masses are NaN no place is right, but it must be one: `check_drawn` tells.
    return torch.searchsorted(cumulative, target[:, None], right=True)[:, 0].clamp(max=mass.shape[1] - 1)


def _truncate(logits: Tensor, sampling: Sampling) -> Tensor:
    """Rule out the tokens that top-k and top-p leave out."""
    if sampling.top_k and sampling.top_k < logits.shape[1]:
        kth = logits.topk(sampling.top_k, dim=1).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if sampling.top_p < 1:
        ordered, order = logits.sort(dim=1, descending=True)
        probs = ordered.softmax(1)
        # A token stays while the mass before it is below p, so the most probable one always does.
        out = (running_sum(probs) - probs) >= sampling.top_p
        logits = logits.masked_fill(torch.zeros_like(out).scatter(1, order, out), -torch.inf)
    return logits


def draw(logits: Tensor, uniform: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Draw one token a row.

    Args:
        logits: (B, V).
        uniform: (B,) in [0, 1).
        sampling: temperature and truncation.

    Returns:
        tokens (B,) long, and their log-probabilities (B,) float32 in nats, over the whole vocabulary at the sampling
        temperature (at temperature 0: at 1).
    """
    logits = logits.float()
    if sampling.temperature == 0:
        tokens = logits.argmax(1)
        return tokens, logprobs_from_logits(logits, tokens)
    tempered = logits if sampling.temperature == 1 else logits / sampling.temperature
    # Not normalised, which the search does not mind: one pass over the vocabulary less.
    top = tempered.amax(1, keepdim=True)
    masses = (_truncate(tempered, sampling) - top).exp_()
    tokens = inverse_cdf(masses, uniform)
    whole = masses.sum(1) if not sampling.truncates else (tempered - top).exp_().sum(1)
    return tokens, (tempered.gather(1, tokens[:, None]) - top).squeeze(1) - whole.log()


def check_drawn(logprobs: Tensor) -> None:
    """Refuse what was drawn from logits that are NaN or infinite.

    Args:
        logprobs: of the tokens drawn, any shape.

    Raises:
        UserError: if one is not finite.
    """
    if not bool(logprobs.isfinite().all()):
        raise UserError(
            "the policy's logits are not finite, so no token can be drawn from them: its weights are damaged, or too large for the "
            "precision that it computes in (trainer.precision, model.load.dtype)"
        )

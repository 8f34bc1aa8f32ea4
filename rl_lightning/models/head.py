"""Log-probabilities and entropy straight from hidden states, in chunks: the table of tokens × vocabulary is never held whole."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

#: Compute no entropy, its value, or its value and gradient; or in its place, as `top`, whether a token is the most probable one: 1 or 0.
Entropy = Literal["none", "value", "gradient", "top"]

#: Logits held at a time on a CPU, and on any device at least. If a pass has no more than this, they are kept, as probabilities, for
#: the backward pass. If it has more, they are computed in chunks of this size, once forward and once again backward.
LOGITS_AT_ONCE = 1 << 24

#: On a GPU a chunk of logits in float32 takes about one part in so many of the memory that it has in all.
_PARTS_OF_MEMORY = 64


def logits_at_once(device: torch.device) -> int:
    """Return how many logits are held at a time on a device.

    It follows from the memory that a GPU has, not from what is free: what is computed in which chunk must not differ from run to run.

    Args:
        device: a GPU of 80 GB holds 2²⁸ logits, 1 GB; at a vocabulary of 152 thousand, those of 1,766 tokens.
    """
    if device.type != "cuda":
        return LOGITS_AT_ONCE
    return logits_within(torch.cuda.get_device_properties(device).total_memory)


def logits_within(memory: float) -> int:
    """Return how many logits are held at a time on a GPU with so many bytes of memory in all."""
    return max(LOGITS_AT_ONCE, 1 << (int(memory / (torch.float32.itemsize * _PARTS_OF_MEMORY)).bit_length() - 1))


@contextlib.contextmanager
def read_instead(
    head: nn.Linear, states: Tensor, tokens: Tensor, temperature: float, entropy: Entropy
) -> Iterator[list[Tensor]]:
    """Within this context, let a language-model head return log-probabilities and entropies instead of logits.

    The replacement runs inside the model's own forward, because a sharding strategy gathers the head's weights only there.

    Args:
        head: the projection to the vocabulary.
        states: (K,) long; the positions to read, counted row by row over the whole pass.
        tokens: (K,) long; the token that each position predicts.
        temperature: τ > 0.
        entropy: whether to compute it too, and whether it will be differentiated.

    Yields:
        A list whose only item is what the head returned last: (2, K), log-probabilities and entropies in nats (0 if not
        asked for).
    """
    found: list[Tensor] = []

    def forward(hidden: Tensor) -> Tensor:
        chosen = hidden.flatten(0, -2).index_select(0, states)
        weight: Tensor = head.weight
        bias: Tensor | None = head.bias
        device = hidden.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            chosen, weight, bias = chosen.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        rows = max(1, logits_at_once(hidden.device) // head.out_features)
        with torch.autocast(device, enabled=False):
            found[:] = [_TokenLogprobs.apply(chosen, weight, bias, tokens, temperature, entropy, rows)]
        return found[0]

    head.forward = forward  # type: ignore[method-assign, assignment]
    try:
        yield found
    finally:
        del head.forward


class _TokenLogprobs(torch.autograd.Function):
    """log softmax(z / τ) at one token per row and the entropy H = −Σ p log p, z = h Wᵀ + b, with one chunk of logits in memory.

    With p = softmax(z / τ): ∂ log p_y / ∂z = (1_y − p) / τ and ∂H / ∂z = −p (log p + H) / τ.

    Shapes: states h (K, H), weight W (V, H), bias b (V,), tokens y (K,), logits of a chunk (rows, V), result (2, K).
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tokens: Tensor,
        temperature: float,
        entropy: Entropy,
        rows: int,
    ) -> Tensor:
        keep = len(tokens) <= rows and entropy != "gradient" and any(ctx.needs_input_grad)
        parts, probs = [], states.new_empty(0)
        for at in _chunks(len(tokens), rows):
            logits = _logits(states[at], weight, bias, temperature)
            top = logits.amax(1, keepdim=True)
            picked = (logits.gather(1, tokens[at, None]) - top).squeeze(1)
            masses = logits.sub_(top).exp()
            total = masses.sum(1)
            if entropy == "none":
                spread = torch.zeros_like(total)
            elif entropy == "top":
                spread = (picked == 0).to(total)
            else:
                spread = total.log() - torch.linalg.vecdot(masses, logits) / total
            parts.append(torch.stack([picked - total.log(), spread, top.squeeze(1) + total.log()]))
            if keep:
                probs = masses.div_(total[:, None])
        read = torch.cat(parts, 1) if parts else states.new_zeros(3, 0)
        ctx.save_for_backward(states, weight, bias, tokens, read, probs)
        ctx.temperature, ctx.rows, ctx.through_entropy = temperature, rows, entropy == "gradient"
        return read[:2].clone()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        states, weight, bias, tokens, (_, entropy, log_total), probs = ctx.saved_tensors
        by_logprob, by_entropy = slope.unsqueeze(2)
        to_states = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        # Gradients of chunks are summed in at least float32, even for half-precision weights.
        to_weight = torch.zeros_like(weight, dtype=slope.dtype) if ctx.needs_input_grad[1] and not len(tokens) else None
        to_bias = torch.zeros_like(bias, dtype=slope.dtype) if ctx.needs_input_grad[2] else None
        for at in _chunks(len(tokens), ctx.rows):
            if len(probs):
                gradient = probs * -by_logprob
            else:
                logprobs = _logits(states[at], weight, bias, ctx.temperature).sub_(log_total[at, None])
                factor = -by_logprob[at]
                if ctx.through_entropy:
                    factor = factor - by_entropy[at] * (logprobs + entropy[at, None])
                gradient = logprobs.exp_().mul_(factor)
            gradient.scatter_add_(1, tokens[at, None], by_logprob[at])
            gradient = (gradient if ctx.temperature == 1.0 else gradient.div_(ctx.temperature)).to(states.dtype)
            if to_states is not None:
                to_states[at] = gradient @ weight
            if ctx.needs_input_grad[1]:
                to_weight = _sum_with_product(to_weight, gradient, states[at], slope.dtype)
            if to_bias is not None:
                to_bias += gradient.sum(0)
        grown = (None if one is None else one.to(weight.dtype) for one in (to_weight, to_bias))
        return to_states, *grown, None, None, None, None


def _chunks(length: int, rows: int) -> Iterator[slice]:
    for start in range(0, length, rows):
        yield slice(start, start + rows)


def _logits(states: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    """Return z / τ in float32 or float64, as a new tensor that the caller may change in place."""
    logits = functional.linear(states, weight, bias)
    logits = logits if logits.dtype in (torch.float32, torch.float64) else logits.float()
    return logits if temperature == 1.0 else logits.div_(temperature)


def _sum_with_product(total: Tensor | None, gradient: Tensor, states: Tensor, dtype: torch.dtype) -> Tensor:
    if total is None:
        return (gradient.t() @ states).to(dtype)
    if dtype == gradient.dtype:
        return total.addmm_(gradient.t(), states)
    return total.add_(gradient.t() @ states)

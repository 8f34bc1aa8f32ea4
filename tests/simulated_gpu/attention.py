"""Attention as CUDA would compute it: which kernel it would take, and the numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.simulated_gpu.counts import SEEN

aten = torch.ops.aten


def choose(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, enable_gqa: bool) -> str:
    """Return `flash`, `efficient` or `math`, and count it: a reading of torch's sdp_utils.cpp for an H100."""
    half = query.dtype in (torch.float16, torch.bfloat16)
    grouped = enable_gqa and query.shape[-3] != key.shape[-3]
    width = query.shape[-1]
    strided = any(one.stride(-1) != 1 for one in (query, key, value))
    reasons = {"float32": not half, "mask": attn_mask is not None, "head_dim > 256": width > 256, "strides": strided}
    why = next((reason for reason, holds in reasons.items() if holds), "")
    chosen, note = "flash", ""
    if why:
        plain = grouped or strided or query.dtype == torch.float64 or bool(width % (8 if half else 4))
        chosen = "math" if plain else "efficient"
        note = "; grouped heads" if grouped else ""
        if not plain and attn_mask is not None and not is_aligned(attn_mask):
            note = "; mask copied to be aligned"
    SEEN.attention[SEEN.phase, chosen, why + note] += 1
    return chosen


def is_aligned(mask: Tensor) -> bool:
    """Tell whether the memory-efficient kernel takes a mask without a copy: strides of what is not broadcast divide by 8."""
    sizes = zip(mask.shape[:-1], mask.stride()[:-1], strict=True)
    return all(stride % 8 == 0 for size, stride in sizes if size > 1)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`scaled_dot_product_attention` as on CUDA; a CPU build would know of plain products alone."""
    chosen = choose(query, key, value, attn_mask, enable_gqa)
    if chosen == "flash":
        return aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)[0]
    if chosen == "efficient":
        bias = attn_mask
        if bias is not None:
            if bias.dtype == torch.bool:
                bias = torch.zeros_like(bias, dtype=query.dtype).masked_fill(~bias, -torch.inf)
            bias = bias.expand(*query.shape[:2], query.shape[2], key.shape[2])
        learns = torch.is_grad_enabled() and any(one.requires_grad for one in (query, key, value))
        return aten._scaled_dot_product_efficient_attention(
            query, key, value, bias, learns, dropout_p, is_causal, scale=scale
        )[0]
    return aten._scaled_dot_product_attention_math(
        query, key, value, attn_mask, dropout_p, is_causal, None, scale=scale, enable_gqa=enable_gqa
    )[0]


def _scores(
    query: Tensor, key: Tensor, bias: Tensor | None, is_causal: bool, scale: float | None
) -> tuple[Tensor, float]:
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    scores = (query.float() @ key.float().transpose(-1, -2)) * factor
    if bias is not None:
        scores = scores + bias.float()
    if is_causal:
        scores = scores.masked_fill(~torch.ones(scores.shape[-2:], dtype=torch.bool).tril(), -torch.inf)
    return scores, factor


def _weights(scores: Tensor) -> Tensor:
    return scores.softmax(-1).nan_to_num(0.0)  # a row that sees nothing reads zeros, since torch 2.5


def _efficient(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_bias: Tensor | None,
    compute_log_sumexp: bool,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
) -> tuple[Tensor, ...]:
    scores, _ = _scores(query, key, attn_bias, is_causal, scale)
    read = (_weights(scores) @ value.float()).to(query.dtype)
    read = read.transpose(1, 2).contiguous().transpose(1, 2)  # the layout that the kernel returns
    none = torch.zeros((), dtype=torch.long)
    return read, scores.logsumexp(-1), none, none.clone()


def _backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    is_causal: bool,
    scale: float | None,
) -> tuple[Tensor, ...]:
    scores, factor = _scores(query, key, bias, is_causal, scale)
    weights, out = _weights(scores), gradient.float()
    by_weights = out @ value.float().transpose(-1, -2)
    by_scores = weights * (by_weights - (weights * by_weights).sum(-1, keepdim=True))
    by_query, by_key = by_scores @ key.float() * factor, by_scores.transpose(-1, -2) @ query.float() * factor
    return tuple(part.to(query.dtype) for part in (by_query, by_key, weights.transpose(-1, -2) @ out))


def _efficient_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_bias: Tensor | None,
    *rest: Any,
    scale: float | None = None,
) -> tuple[Tensor | None, ...]:
    is_causal = rest[6] if len(rest) > 6 else False  # out, logsumexp, seed, offset, dropout, which gradients, causal
    return (*_backward(gradient, query, key, value, attn_bias, is_causal, scale), None)


def _flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    return_debug_mask: bool = False,
    *,
    scale: float | None = None,
) -> tuple[Any, ...]:
    repeat = query.shape[1] // key.shape[1]
    key, value = (one.repeat_interleave(repeat, 1) if repeat > 1 else one for one in (key, value))
    read, total, *_ = _efficient(query, key, value, None, True, dropout_p, is_causal, scale=scale)
    empty, none = torch.zeros(0), torch.zeros(2, dtype=torch.int64)
    return read, total, empty.int(), empty.int().clone(), query.shape[2], key.shape[2], none, none.clone(), empty


def _flash_backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: Any, scale: float | None = None
) -> tuple[Tensor, ...]:
    is_causal = rest[7]  # out, logsumexp, four sizes, dropout, causal, seed, offset
    repeat = query.shape[1] // key.shape[1]
    wide = [one.repeat_interleave(repeat, 1) for one in (key, value)]
    by_query, *others = _backward(gradient, query, *wide, None, is_causal, scale)
    return by_query, *(one.unflatten(1, (-1, repeat)).sum(2) for one in others)


def _rms_norm(states: Tensor, shape: list[int], weight: Tensor | None, eps: float | None) -> tuple[Tensor, Tensor]:
    return torch.nn.functional.rms_norm(states, shape, weight, eps), states.new_zeros(0)


#: Kernels that a CPU build lacks, by the operation's name; they work on CPU tensors.
KERNELS = {
    "_fused_rms_norm": _rms_norm,
    "_scaled_dot_product_efficient_attention": _efficient,
    "_scaled_dot_product_efficient_attention_backward": _efficient_backward,
    "_scaled_dot_product_flash_attention": _flash,
    "_scaled_dot_product_flash_attention_backward": _flash_backward,
}

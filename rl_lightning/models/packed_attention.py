"""Packed rows in models of transformers: the attention functions that read them, and which models take them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rl_lightning.models.families import unlike_plain_attention
from rl_lightning.models.packing import Packing
from rl_lightning.travel import on_host

#: Kernel, by transformers' name → the name that our attention on top of it is registered under. Rows that are not packed go
#: through transformers' own `sdpa` in both cases.
_NAMES = {"sdpa": "rl_lightning_packed", "flex_attention": "rl_lightning_packed_flex"}

log = logging.getLogger(__name__)


def _attention(
    attend: Callable[[Packing, Tensor, Tensor, Tensor, float | None], Tensor],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    packing: Packing | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function that transformers calls: `attend` for packed rows, transformers' `sdpa` for all others.

    Args:
        attend: `Packing.attend` or `Packing.attend_whole`.
        module, query, key, value, attention_mask, scaling, dropout, kwargs: see transformers' `AttentionInterface`.
        packing: the argument that `packed` adds to a forward pass; None for rows that are not packed.
    """
    if packing is not None:
        return attend(packing, query, key, value, scaling), None
    if query.shape[2] == 1 and query.device.type != "cpu" and not dropout and attention_mask is not None:
        # A decoding step on a GPU, whose kernels for masks know no grouped heads: the heads that share keys are rows of one query.
        count, shared = query.shape[0], key.shape[1]
        rows = query.unflatten(1, (shared, -1)).squeeze(3)  # (n, key-value heads, heads of each, D)
        seen = attention_mask.expand(count, shared, rows.shape[2], -1)
        grouped = scaled_dot_product_attention(rows, key, value, seen, scale=scaling)
        return grouped.reshape(count, 1, query.shape[1], -1), None
    if query.shape[2] == 1 and query.device.type == "cpu" and not dropout:
        # A decoding step. SDPA takes grouped keys as they are, which is a third faster than repeating them, as transformers does.
        read_once = scaled_dot_product_attention(query, key, value, attention_mask, scale=scaling, enable_gqa=True)
        return read_once.transpose(1, 2), None
    read: tuple[Tensor, None] = sdpa_attention_forward(
        module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
    )
    return read


def _mask(attention_mask: Tensor | None = None, allow_is_causal_skip: bool = True, **sizes: Any) -> Tensor | None:
    """Return the mask of rows that are not packed: transformers' `sdpa_mask`, which would ask a device whether there is padding.

    Args:
        attention_mask: (B, T) bool, or None.
        allow_is_causal_skip: None may be returned where no token is padding.
        sizes: see `sdpa_mask`.
    """
    if attention_mask is not None and attention_mask.device.type != "cpu":
        whole = bool(on_host(attention_mask).all())
        attention_mask, allow_is_causal_skip = None if whole else attention_mask, allow_is_causal_skip and whole
    mask: Tensor | None = sdpa_mask(attention_mask=attention_mask, allow_is_causal_skip=allow_is_causal_skip, **sizes)
    return mask


for _kernel, _attend in (("sdpa", Packing.attend), ("flex_attention", Packing.attend_whole)):
    AttentionInterface.register(_NAMES[_kernel], partial(_attention, _attend))
    AttentionMaskInterface.register(_NAMES[_kernel], _mask)


def masks_on_host(model: nn.Module, attention_mask: Tensor) -> bool:
    """Return whether a model's mask is made by `_mask`, from a mask on a device."""
    ours = isinstance(model, PreTrainedModel) and model.config._attn_implementation in _NAMES.values()
    return ours and attention_mask.device.type != "cpu" and attention_mask.dtype == torch.bool


def enable_packing(model: PreTrainedModel) -> None:
    """Set a model's attention to one that packed rows can use, or log why it cannot have it.

    Rows that are not packed still go through transformers' `sdpa`. A model that was loaded with another attention keeps it. A
    model with a sliding window packs the microbatches whose rows all fit into the window.
    """
    kernel = str(model.config._attn_implementation)
    reason = unlike_plain_attention(model)
    if kernel in _NAMES and model._supports_sdpa and unlike_plain_attention(model, longest=1) is None:
        model.set_attn_implementation(_NAMES[kernel])
    else:
        reason = reason or f"was loaded with attn_implementation {kernel}"
    if reason is not None:
        log.info(
            "%s %s: %sprompts are computed anew for each response, and padding with them",
            type(model).__name__,
            reason,
            "where a row is longer than its window, " if packs(model, longest=1) else "",
        )


def packs(model: nn.Module, longest: int | None = None) -> bool:
    """Return whether a model takes packed rows.

    Args:
        model: any module.
        longest: tokens of the longest row; the model's context length if None.
    """
    ours = isinstance(model, PreTrainedModel) and model.config._attn_implementation in _NAMES.values()
    return ours and unlike_plain_attention(model, longest) is None


def packed(rows: Packing) -> dict[str, object]:
    """Return the arguments of a model's forward for a packed row, (1, L)."""
    # transformers passes a mask of four dimensions on unchanged. This one is empty: the attention functions above ignore it.
    none = torch.empty(1, 1, 0, 0, dtype=torch.bool, device=rows.input_ids.device)
    return {"input_ids": rows.input_ids, "position_ids": rows.positions, "attention_mask": none, "packing": rows}

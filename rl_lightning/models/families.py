"""What families of models differ in."""

from __future__ import annotations

import inspect

from torch import nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

#: Settings of attention that not every implementation of it knows.
_UNUSUAL = ("attn_logit_softcapping", "attention_chunk_size")


def accepts(model: nn.Module, argument: str) -> bool:
    """Tell whether the model's forward takes an argument; families differ in `position_ids` and `logits_to_keep`."""
    return argument in inspect.signature(type(model).forward).parameters


def unlike_plain_attention(model: nn.Module) -> str | None:
    """Return what sets a model apart from plain causal attention over all earlier tokens in every layer; None if nothing does.

    Only such models can be computed, and cached, in other shapes than transformers' own.
    """
    if not isinstance(model, PreTrainedModel):
        return "is no model of transformers"
    config = model.config.get_text_config()
    if config.is_encoder_decoder:
        return "has an encoder"
    if not model._supports_attention_backend:
        return "brings an attention of its own"
    for name in _UNUSUAL:
        if getattr(config, name, None) is not None:
            return f"sets {name}"
    for layer in DynamicCache(config=config).layers:
        # Sliding windows, convolutions and recurrences keep layers of other classes.
        if type(layer) is not DynamicLayer:
            return f"keeps a {type(layer).__name__} in its cache"
    return None if accepts(model, "position_ids") else "takes no position_ids"

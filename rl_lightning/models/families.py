"""Differences between families of models: arguments of forward, attention, layers."""

from __future__ import annotations

import inspect
import sys
from typing import NamedTuple
from weakref import WeakKeyDictionary

from torch import nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer


def accepts(model: nn.Module, argument: str) -> bool:
    """Return whether a model's forward takes an argument, such as `position_ids` or `logits_to_keep`."""
    return argument in inspect.signature(type(model).forward).parameters


def cache_argument(model: nn.Module) -> str:
    """Return how a model's forward calls its key-value cache: transformers renamed `past_key_values` in release 5.24."""
    return "cache" if accepts(model, "cache") else "past_key_values"


class _Attention(NamedTuple):
    """How a model's attention differs from plain causal attention over all earlier tokens.

    Args:
        apart: the difference, in words, windows aside; None if there is none.
        windows: width in tokens of each attention window → its description for messages.
        longest: the model's context length in tokens.
    """

    apart: str | None
    windows: dict[int, str]
    longest: int


#: Model → its attention; a cache, since it is asked for before each forward pass.
_attention: WeakKeyDictionary[nn.Module, _Attention] = WeakKeyDictionary()


def unlike_plain_attention(model: nn.Module, longest: int | None = None) -> str | None:
    """Return how a model differs from plain causal attention over all earlier tokens in every layer; None if it does not.

    Packed rows and our own key-value caches are correct for plain causal attention only. An attention window that is at least
    as long as every sequence makes no difference.

    Args:
        model: any module.
        longest: tokens of the longest sequence; the model's context length if None.

    Returns:
        Words that follow the model's name in a message, such as `has an encoder`.
    """
    found = _attention.get(model)
    if found is None:
        found = _attention[model] = _attention_of(model)
    longest = longest or found.longest
    return found.apart or next((said for width, said in found.windows.items() if width < longest), None)


def narrowest_window(model: nn.Module) -> int:
    """Return the width in tokens of the narrowest attention window of a model's layers; `sys.maxsize` if they have none."""
    unlike_plain_attention(model)
    return min(_attention[model].windows, default=sys.maxsize)


def _attention_of(model: nn.Module) -> _Attention:
    if not isinstance(model, PreTrainedModel):
        return _Attention("is no model of transformers", {}, 0)
    config = model.config.get_text_config()
    longest = getattr(config, "max_position_embeddings", None) or sys.maxsize
    windows = {}
    chunk = getattr(config, "attention_chunk_size", None)
    if chunk is not None:
        windows[int(chunk)] = "sets attention_chunk_size"
    apart = None if accepts(model, "position_ids") else "takes no position_ids"
    # Convolutions and recurrences have cache layers of other classes. A model with an encoder may have no DynamicCache.
    for layer in [] if config.is_encoder_decoder else DynamicCache(config=config).layers:
        said = f"keeps a {type(layer).__name__} in its cache"
        if isinstance(layer, DynamicSlidingWindowLayer):
            windows[int(layer.sliding_window)] = said
        elif type(layer) is not DynamicLayer:
            apart = said
    if getattr(config, "attn_logit_softcapping", None) is not None:
        apart = "sets attn_logit_softcapping"
    if not model._supports_attention_backend:
        apart = "brings an attention of its own"
    if config.is_encoder_decoder:
        apart = "has an encoder"
    return _Attention(apart, windows, longest)


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers of a model's decoder: the members of its largest `ModuleList`, or none if it has no such list.

    This finds them in every family of transformers, whatever their name, and also in a model that is wrapped in another one.
    """
    lists: list[nn.Module] = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module)]
    return list(max(lists, key=_numbers).children()) if lists else []


def _numbers(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())

"""What families of models differ in."""

from __future__ import annotations

import inspect
import sys
from typing import NamedTuple
from weakref import WeakKeyDictionary

from torch import nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer


def accepts(model: nn.Module, argument: str) -> bool:
    """Tell whether the model's forward takes an argument; families differ in `position_ids` and `logits_to_keep`."""
    return argument in inspect.signature(type(model).forward).parameters


class _Attention(NamedTuple):
    """What a family's attention is.

    Args:
        apart: what sets it apart from plain causal attention over all earlier tokens within its windows; None if nothing does.
        windows: width in tokens of each window that layers have → what messages call it.
        longest: tokens of the longest sequence that the model is made for.
    """

    apart: str | None
    windows: dict[int, str]
    longest: int


#: Models → what their attention is, which is asked before each pass.
_attention: WeakKeyDictionary[nn.Module, _Attention] = WeakKeyDictionary()


def unlike_plain_attention(model: nn.Module, longest: int | None = None) -> str | None:
    """Return what sets a model apart from plain causal attention over all earlier tokens in every layer; None if nothing does.

    Only such models can be computed, and cached, in other shapes than transformers' own. A window that no sequence is longer than
    sets nothing apart.

    Args:
        model: of any kind.
        longest: tokens of the longest sequence that it is to read; as many as its configuration allows if None.
    """
    found = _attention.get(model)
    if found is None:
        found = _attention[model] = _attention_of(model)
    longest = longest or found.longest
    return found.apart or next((said for width, said in found.windows.items() if width < longest), None)


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
    # Convolutions and recurrences keep layers of other classes; what has an encoder may have no cache that is known here.
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
    """Return the layers that make up most of a model: the members of its largest `ModuleList`, if it has one.

    That holds for every family of transformers, whatever it calls them, and for a model inside another one.
    """
    lists: list[nn.Module] = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module)]
    return list(max(lists, key=_numbers).children()) if lists else []


def _numbers(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())

"""What a model's configuration must not decide, and what it does not say outright."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import MODEL_MAPPING, AutoModel, PreTrainedConfig

#: Settings that are the same for every model that is loaded.
_FIXED = {
    # What a forward pass returns: callers read the fields of one output, and what else it holds would only cost memory.
    "return_dict": True,
    "output_attentions": False,
    "output_hidden_states": False,
    "output_router_logits": False,
    # What evaluation mode does to a model that is trained in it: RWKV would halve its weights in place, and xLSTM would read
    # long texts without a gradient.
    "rescale_every": 0,
    "max_inference_chunksize": 1 << 62,
}

log = logging.getLogger(__name__)


def settle(config: PreTrainedConfig) -> PreTrainedConfig:
    """Give a configuration, in place, the settings that callers of the model rely on, and no pad token outside its vocabulary."""
    for part in _parts(config):
        for name, value in _FIXED.items():
            if getattr(part, name, value) != value:
                setattr(part, name, value)
    text = config.get_text_config()
    pad_id, size = text.pad_token_id, getattr(text, "vocab_size", None)
    if pad_id is not None and not in_vocabulary(pad_id, size):
        log.info("pad_token_id %d of the model's config.json is no token: it counts as not given", pad_id)
        for part in (config, text):
            part.pad_token_id = None
    return config


def in_vocabulary(token_id: int, size: int | None) -> bool:
    """Tell whether a number is the id of a token, of so many."""
    return token_id >= 0 and (size is None or token_id < size)


def _parts(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    """Yield a configuration and those inside it, of a text model or a vision tower, say."""
    yield config
    for name in config.sub_configs:
        part = getattr(config, name, None)
        if isinstance(part, PreTrainedConfig):
            yield from _parts(part)


def context_length(config: PreTrainedConfig) -> int | None:
    """Return how many tokens the longest sequence has that a model can read; None if it has no limit.

    The relatives of RoBERTa count positions from the one behind that of padding, so the first rows of their table are never
    used for a token.
    """
    limit: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    if limit is None or type(config) not in MODEL_MAPPING:
        return limit
    with torch.device("meta"):  # its modules, without a weight in memory
        model = AutoModel.from_config(config)
    tables = [part for name, part in model.named_modules() if "position" in name and isinstance(part, nn.Embedding)]
    padding: list[Any] = [table.padding_idx for table in tables if table.padding_idx is not None]
    return limit - max(padding) - 1 if padding else limit

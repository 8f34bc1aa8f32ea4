"""Settings of a model's configuration that are the same for all models, and limits that follow from it."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import torch
from torch import nn
from transformers import MODEL_MAPPING, AutoModel, PreTrainedConfig

#: Settings that every loaded model gets.
_FIXED = {
    # A forward pass returns an object with named fields, and nothing that costs memory and is never read.
    "return_dict": True,
    "output_attentions": False,
    "output_hidden_states": False,
    "output_router_logits": False,
    # Forward passes run in evaluation mode (`noise.py`). There RWKV would rescale its weights in place, and xLSTM would process
    # long texts without a gradient.
    "rescale_every": 0,
    "max_inference_chunksize": 1 << 62,
}

log = logging.getLogger(__name__)


def settle(config: PreTrainedConfig) -> PreTrainedConfig:
    """Set a configuration's fixed settings in place, and remove a pad token id outside the vocabulary.

    Returns:
        The same configuration.
    """
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
    """Return whether a token id is in a vocabulary of `size` tokens, or at least 0 if the size is unknown."""
    return token_id >= 0 and (size is None or token_id < size)


def _parts(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    """Yield a configuration and all that are nested in it, such as those of a text model and a vision tower."""
    yield config
    for name in config.sub_configs:
        part = getattr(config, name, None)
        if isinstance(part, PreTrainedConfig):
            yield from _parts(part)


def context_length(config: PreTrainedConfig) -> int | None:
    """Return the length in tokens of the longest sequence that a model can read; None if it has no limit.

    Under LongRoPE (Phi-3 and its relatives) it is the length before which all positions are read with the short factors: one longer row would
    change what the rows beside it say, since transformers chooses the factors for a whole pass.

    In RoBERTa and its relatives this is less than `max_position_embeddings`: their positions start after the pad token's.
    """
    limit: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    if limit is not None:
        limit = min([limit, *_before_the_long_factors(config.get_text_config())])
    if limit is None or type(config) not in MODEL_MAPPING:
        return limit
    with torch.device("meta"):  # modules without memory for weights
        model = AutoModel.from_config(config)
    tables = [part for name, part in model.named_modules() if "position" in name and isinstance(part, nn.Embedding)]
    padding = [table.padding_idx for table in tables if table.padding_idx is not None]
    return limit - max(padding) - 1 if padding else limit


def _before_the_long_factors(config: PreTrainedConfig) -> Iterator[int]:
    """Yield the length up to which LongRoPE takes its short factors; nothing for other positions."""
    found = getattr(config, "rope_parameters", None) or {}
    # Some models have parameters of their own for each kind of layer.
    for one in [found, *(value for value in found.values() if isinstance(value, dict))]:
        if one.get("rope_type") == "longrope":
            yield one.get("original_max_position_embeddings") or config.original_max_position_embeddings

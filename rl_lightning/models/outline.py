"""A model without its weights, which another process reads and hands out."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto.auto_factory import _BaseAutoModelClass


def outline_of(
    kind: type[_BaseAutoModelClass],
    config: PretrainedConfig,
    dtype: torch.dtype,
    attention: str | None,
    trust_remote_code: bool,
) -> PreTrainedModel | None:
    """Return a model whose parameters and buffers are on the device `meta`; None if it keeps tensors elsewhere, which nobody would hand out.

    Args:
        kind: one of transformers' `Auto` classes.
        config: of the model.
        dtype: of its weights.
        attention, trust_remote_code: see `LoadOptions`.
    """
    chosen = {"attn_implementation": attention} if attention else {}
    with torch.device("meta"):
        model: PreTrainedModel = kind.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code, **chosen)
    elsewhere = (value for part in model.modules() for value in vars(part).values())
    return None if any(isinstance(value, Tensor) and value.is_meta for value in elsewhere) else model.eval()


def is_outline(model: nn.Module) -> bool:
    """Return whether a model has no weights yet."""
    return any(weight.is_meta for weight in model.parameters())

"""How many tokens the key-value cache has room for."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from rl_lightning.models.roofline import Work

#: Tokens on a CPU, and for a model whose cache cannot be counted.
TOKENS = 65536

#: Of the memory of a GPU that is free.
_SHARE = 1 / 2


def room_for(model: nn.Module, longest: int | None = None) -> int:
    """Return the prompt and response tokens that the cache of a model has room for on its device.

    On a GPU: as many as fit into half of the memory that is free, a power of 2, so that what little differs from run to run changes
    nothing. With 40 GB free these are 2²⁰ for a policy of 0.5 billion parameters (24 layers of 2 × 64 keys in bfloat16).

    Args:
        model: of transformers, with plain causal attention in every layer.
        longest: tokens of the longest sequence; the model's context length if None.

    Returns:
        Tokens; 0 if not one fits.
    """
    device = next(model.parameters()).device
    if device.type != "cuda" or not isinstance(model, PreTrainedModel):
        return TOKENS
    narrow = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
    work = Work.of(model, longest, narrow)
    if work is None:
        return TOKENS
    # What torch's allocator keeps for itself is free too.
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    fit = int(free * _SHARE) // (work.cached * work.itemsize)
    return 1 << (fit.bit_length() - 1) if fit else 0

"""Which tokens count, and means over them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def response_mask_from_ids(response_ids: Tensor, stop_ids: Iterable[int]) -> Tensor:
    """Return True on every generated token up to and including the first stop token.

    Stopping is an action with a probability, so the stop token counts. The mask is found from the *first* stop token
    and never from a pad id, because many tokenizers pad with a stop token.

    Args:
        response_ids: (B, R) long.
        stop_ids: token ids that end a response.

    Returns:
        (B, R) bool.
    """
    stops = torch.tensor(sorted(stop_ids), device=response_ids.device)
    is_stop = torch.isin(response_ids, stops)
    return (is_stop.cumsum(1) - is_stop.long()) == 0


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of the values where the mask is True, 0 for an empty mask.

    Args:
        values: any shape; what lies outside the mask is never read, so it may be NaN or infinite.
        mask: bool, same shape.

    Returns:
        A scalar.
    """
    return torch.where(mask, values, 0).sum() / mask.sum().clamp(min=1)

"""Which tokens count, and means over them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

#: Adds a tensor up over the ranks that a batch is spread over; every rank must then call what is given it.
Total = Callable[[Tensor], Tensor]


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


def alone(sums: Tensor) -> Tensor:
    """Return sums as they are: nothing is spread over ranks."""
    return sums


def masked_mean(values: Tensor, mask: Tensor, total: Total = alone) -> Tensor:
    """Return the mean of the values where the mask is True, 0 for an empty mask.

    Args:
        values: any shape, floating point; what lies outside the mask is never read, so it may be NaN or infinite.
        mask: bool, same shape.
        total: adds sums up over ranks, for the mean over all of them.

    Returns:
        A scalar.
    """
    summed, count = total(torch.stack([torch.where(mask, values, 0).sum(), mask.sum().to(values.dtype)]))
    return summed / count.clamp(min=1)


def masked_variance(values: Tensor, mask: Tensor, total: Total = alone) -> Tensor:
    """Return the population variance of the values where the mask is True, 0 for an empty mask.

    Args:
        values: any shape, floating point; what lies outside the mask is never read.
        mask: bool, same shape.
        total: adds sums up over ranks, for the variance over all of them.

    Returns:
        A scalar, in squared units of the values.
    """
    return masked_mean((values - masked_mean(values, mask, total)).square(), mask, total)


def masked_whiten(values: Tensor, mask: Tensor, total: Total = alone, eps: float = 1e-8) -> Tensor:
    """Return (v − mean) / (std + eps) over the values where the mask is True, 0 elsewhere; std has the divisor n − 1.

    Values without spread, or a single one, give exactly 0, whatever the rounding of their mean.

    Args:
        values: any shape; what lies outside the mask is never read.
        mask: bool, same shape.
        total: adds sums up over ranks, for the mean and deviation of all of them.
        eps: added to the deviation, in units of the values.

    Returns:
        Same shape, in units of deviations.

    Example:
        >>> masked_whiten(torch.tensor([1.0, 3.0, 9.0]), torch.tensor([True, True, False]))
        tensor([-0.7071,  0.7071,  0.0000])
    """
    kept = values[mask].double()
    count, summed = total(torch.stack([mask.sum().double(), kept.sum()]))
    centred = kept - summed / count.clamp(min=1)
    squares = total(centred.square().sum())
    deviation = (squares / (count - 1).clamp(min=1)).sqrt()
    # The mean of n equal numbers is off by a few units in the last place of a double.
    spread = deviation > 1e-12 * (summed / count.clamp(min=1)).abs()
    result = torch.zeros_like(values)
    result[mask] = torch.where(spread, centred / (deviation + eps), 0).to(values.dtype)
    return result

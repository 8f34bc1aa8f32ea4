"""The mask of the tokens that count, and means and variances over a mask, on one rank or over all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

#: Sums a tensor over the ranks that hold the batch. A function that takes one is a collective: every rank must call it.
Total = Callable[[Tensor], Tensor]


def response_mask_from_ids(response_ids: Tensor, stop_ids: Iterable[int]) -> Tensor:
    """Return True on every generated token up to and including the first stop token.

    Stopping is an action with a probability, so the stop token counts. The pad id is not used: many tokenizers pad with a
    stop token.

        ids    5  7  S  P  P        S a stop token, P padding (often the same id)
        mask   1  1  1  0  0

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
    """Return the argument: the `Total` of a batch that is on one rank."""
    return sums


def masked_mean(values: Tensor, mask: Tensor, total: Total = alone) -> Tensor:
    """Return the mean of the values where the mask is True, 0 for an empty mask.

    Args:
        values: any shape, floating point; entries outside the mask are never read, so they may be NaN or infinite.
        mask: bool, same shape.
        total: sums over ranks, for the mean over the entries of all of them.

    Returns:
        A scalar.
    """
    summed, count = total(torch.stack([torch.where(mask, values, 0).sum(), mask.sum().to(values.dtype)]))
    return summed / count.clamp(min=1)


def masked_variance(values: Tensor, mask: Tensor, total: Total = alone) -> Tensor:
    """Return the population variance (divisor n) of the values where the mask is True, 0 for an empty mask.

    Args:
        values: any shape, floating point; entries outside the mask are never read.
        mask: bool, same shape.
        total: sums over ranks, for the variance over the entries of all of them.

    Returns:
        A scalar, in squared units of the values.
    """
    return masked_mean((values - masked_mean(values, mask, total)).square(), mask, total)


def masked_whiten(values: Tensor, mask: Tensor, total: Total = alone, eps: float = 1e-8) -> Tensor:
    """Return (v − mean) / (std + eps) over the values where the mask is True, 0 elsewhere; std has the divisor n − 1.

    Equal values, or a single one, give exactly 0: rounding of the mean does not leak through.

    Args:
        values: any shape; entries outside the mask are never read.
        mask: bool, same shape.
        total: sums over ranks, for the mean and standard deviation over the entries of all of them.
        eps: added to the standard deviation, in units of the values.

    Returns:
        Same shape, in standard deviations.

    Example:
        >>> masked_whiten(torch.tensor([1.0, 3.0, 9.0]), torch.tensor([True, True, False]))
        tensor([-0.7071,  0.7071,  0.0000])
    """
    kept = values[mask].double()
    count, summed = total(torch.stack([mask.sum().double(), kept.sum()]))
    centred = kept - summed / count.clamp(min=1)
    squares = total(centred.square().sum())
    deviation = (squares / (count - 1).clamp(min=1)).sqrt()
    # In float64 the mean of n equal numbers may be off by a few units in the last place.
    spread = deviation > 1e-12 * (summed / count.clamp(min=1)).abs()
    result = torch.zeros_like(values)
    result[mask] = torch.where(spread, centred / (deviation + eps), 0).to(values.dtype)
    return result

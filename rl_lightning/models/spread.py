"""Rows into the slots of a larger table and back, with gradients that only copy.

rows (L = 3)    a b c        places 0 1 4, others 2 3
table (5)       a b 0 0 c
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Spread(torch.autograd.Function):
    """Write rows, (L, ...), into distinct slots of a table of zeros, (area, ...).

    Autograd's own indexing would add gradients up in case two rows shared a slot. Here none do, so the backward pass only reads.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, places: Tensor, others: Tensor, length: int) -> Tensor:
        """Return the table.

        Args:
            ctx: of torch.
            rows: (L, ...).
            places: (L,) long; the slot of each row.
            others: (length − L,) long; the slots without a row.
            length: slots of the table, its area.
        """
        ctx.save_for_backward(places)
        return _placed(rows, places, others, length)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        """Return the gradient of the rows, (L, ...), read out of the table's."""
        (places,) = ctx.saved_tensors
        return gradient[places], None, None, None


class Take(torch.autograd.Function):
    """Read rows, (L, ...), out of distinct slots of a table, (area, ...): the adjoint of `Spread`."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, places: Tensor, others: Tensor) -> Tensor:
        """Return the rows, (L, ...); places and others as in `Spread`."""
        ctx.save_for_backward(places, others)
        ctx.length = len(table)
        return table[places]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of the table, (area, ...): 0 in slots that were not read."""
        places, others = ctx.saved_tensors
        return _placed(gradient, places, others, ctx.length), None, None


def _placed(rows: Tensor, places: Tensor, others: Tensor, length: int) -> Tensor:
    """Return a table (length, ...) with the rows at `places` and zeros at `others`."""
    table = rows.new_empty(length, *rows.shape[1:])
    table[places] = rows
    table[others] = 0
    return table

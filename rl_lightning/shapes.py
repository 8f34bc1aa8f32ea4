"""What algorithms and callbacks give back is of the shape that was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rl_lightning.errors import UserError


def require(what: str, value: Any, shape: Sequence[int], meaning: str, dtype: torch.dtype | None = None) -> None:
    """Refuse anything but a tensor of a shape, which broadcasting might else turn into another objective in silence.

    Args:
        what: who made the value, such as `GRPO.objective`; messages begin with it.
        value: of any type.
        shape: that it must have.
        meaning: what each number of such a tensor is of, such as `one number a response token`.
        dtype: that it must have; any floating-point one if None.

    Raises:
        UserError: in one line, with both shapes.
    """
    wanted = tuple(shape)
    if not isinstance(value, Tensor):
        raise UserError(f"{what} must be a tensor of shape {wanted}, {meaning}, not a {type(value).__name__}")
    if tuple(value.shape) != wanted:
        raise UserError(f"{what} must have the shape {wanted}, {meaning}, not {tuple(value.shape)}")
    if value.dtype != dtype if dtype is not None else not value.is_floating_point():
        raise UserError(f"{what} must be of {dtype or 'a floating-point type'}, {meaning}, not {value.dtype}")

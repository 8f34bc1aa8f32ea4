"""Check of the tensors that algorithms and callbacks return."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rl_lightning.errors import UserError


def require(what: str, value: object, shape: Sequence[int], meaning: str, dtype: torch.dtype | None = None) -> None:
    """Refuse a value that is not a tensor of the given shape. Broadcasting would silently turn it into another objective.

    Args:
        what: where the value comes from, such as `GRPO.objective`; the message begins with it.
        value: of any type.
        shape: the shape that it must have.
        meaning: what its numbers belong to, such as `one number a response token`.
        dtype: the dtype that it must have; any floating-point dtype if None.

    Raises:
        UserError: with the wanted shape or dtype and the actual one.
    """
    wanted = tuple(shape)
    if not isinstance(value, Tensor):
        raise UserError(f"{what} must be a tensor of shape {wanted}, {meaning}, not a {type(value).__name__}")
    if tuple(value.shape) != wanted:
        raise UserError(f"{what} must have the shape {wanted}, {meaning}, not {tuple(value.shape)}")
    if value.dtype != dtype if dtype is not None else not value.is_floating_point():
        raise UserError(f"{what} must be of {dtype or 'a floating-point type'}, {meaning}, not {value.dtype}")

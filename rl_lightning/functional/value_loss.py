"""What a critic is trained on."""

from __future__ import annotations

import torch
from torch import Tensor


def value_loss(
    values: Tensor, returns: Tensor, old_values: Tensor | None = None, clip: float | None = None
) -> tuple[Tensor, Tensor]:
    """Return ½ (V − R̂)² per token, to be minimised, and where the clip binds.

    With a clip c it is the larger of that and ½ (V_old + clamp(V − V_old, −c, c) − R̂)²: a value that has moved towards its
    target by more than c gets no more gradient, one that has moved away from it gets the whole. Where the two terms are equal,
    as they are for a move of c exactly, the gradient is that of the first, V − R̂, whatever torch makes of a tie.

    Args:
        values: V of the critic, (B, R), with gradient.
        returns: R̂, same shape, without gradient.
        old_values: V at rollout time, same shape; read only where there is a clip.
        clip: c > 0 in units of reward, or None.

    Returns:
        (B, R) in squared units of reward, and (B, R) bool: the clipped term is the larger one.

    Source: PPO (arXiv 1707.06347) Eq. 9, which has (V − V_targ)² and leaves its factor to c_1; ½ and the clip are of OpenAI
    baselines' `ppo2`.

    Example:
        >>> value_loss(torch.tensor([2.0]), torch.tensor([3.0]), torch.tensor([0.0]), clip=0.5)
        (tensor([3.1250]), tensor([True]))
    """
    loss = 0.5 * (values - returns).square()
    if clip is None:
        return loss, torch.zeros_like(loss, dtype=torch.bool)
    if old_values is None:
        raise ValueError("a clipped value loss needs old_values")
    # Where the clipped term is the larger one, V is beyond the clip, and the term does not depend on it.
    moved = (values - old_values).detach()
    clipped = 0.5 * (old_values + moved.clamp(-clip, clip) - returns).square()
    binds = (moved.abs() > clip) & (clipped > loss)
    return torch.where(binds, clipped, loss), binds

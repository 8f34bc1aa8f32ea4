"""The loss of a critic, with PPO's optional clip."""

from __future__ import annotations

import torch
from torch import Tensor


def value_loss(
    values: Tensor, returns: Tensor, old_values: Tensor | None = None, clip: float | None = None
) -> tuple[Tensor, Tensor]:
    """Return ½ (V − R̂)² per token, to be minimised, and where the clip binds.

    With a clip c the loss is the larger of that and ½ (V_old + clamp(V − V_old, −c, c) − R̂)². A value that has moved towards
    its target by more than c then has no gradient; one that has moved away from it has the full gradient. Where both terms are
    equal, as after a move of exactly c, the gradient is that of the first, V − R̂, in every version of torch.

    Args:
        values: V of the critic, (B, R), with gradient.
        returns: R̂, same shape, without gradient.
        old_values: V at rollout time, same shape; read only with a clip.
        clip: c > 0 in units of reward; no clip if None.

    Returns:
        (B, R) in squared units of reward, and (B, R) bool: True where the clipped term is the larger one.

    Raises:
        ValueError: for a clip without `old_values`.

    Source: PPO (arXiv 1707.06347) Eq. 9, which has (V − V_targ)² with the factor c_1. The factor ½ and the clip come from
    `ppo2` of OpenAI baselines.

    Example:
        >>> value_loss(torch.tensor([2.0]), torch.tensor([3.0]), torch.tensor([0.0]), clip=0.5)
        (tensor([3.1250]), tensor([True]))
    """
    loss = 0.5 * (values - returns).square()
    if clip is None:
        return loss, torch.zeros_like(loss, dtype=torch.bool)
    if old_values is None:
        raise ValueError("a clipped value loss needs old_values")
    # Detached: where the clip binds, V_old ± c is a constant, and where it does not bind the other term is taken.
    moved = (values - old_values).detach()
    clipped = 0.5 * (old_values + moved.clamp(-clip, clip) - returns).square()
    binds = (moved.abs() > clip) & (clipped > loss)
    return torch.where(binds, clipped, loss), binds

"""One reward from the scores of several reward models."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

Combination = Literal["mean", "min", "mean_minus_var"]


def combine(members: Tensor, how: Combination = "mean", coef: float = 1.0) -> Tensor:
    """Return the reward that an ensemble gives each response.

    =================  ==========================================  ==================================
    `how`              reward                                      in the source
    =================  ==========================================  ==================================
    `mean`             mean over the members                       mean optimisation
    `min`              the lowest member                           worst-case optimisation (WCO)
    `mean_minus_var`   mean − coef × variance over the members     uncertainty-weighted (UWO)
    =================  ==========================================  ==================================

    An ensemble removes what differs from member to member. An error that all members share, such as a preference for short answers in the
    data that all were trained on, stays whatever the combination.

    Args:
        members: (k, B) float: each member's score of each response, on a common scale. NaN of one member is NaN of the response.
        how: one of the names above.
        coef: factor of the variance, in units of 1 / reward.

    Returns:
        (B,) float.

    Raises:
        ValueError: for an unknown name.

    Source: Coste et al. (arXiv 2310.02743), section 3. The variance is that of the population, divided by k.
    """
    if how == "mean":
        return members.mean(0)
    if how == "min":
        return members.amin(0)
    if how == "mean_minus_var":
        return members.mean(0) - coef * members.var(0, correction=0)
    raise ValueError(f"unknown combination {how!r}; choose one of {', '.join(get_args(Combination))}")

"""Settings of online algorithms that cannot be, or do not do what one may think."""

from __future__ import annotations

import logging

from rl_lightning.errors import UserError
from rl_lightning.functional import KLEstimator

log = logging.getLogger(__name__)


def check_coefficients(kl_coef: float, entropy_coef: float, reference: str | None) -> None:
    """Refuse weights of the divergence and of the entropy that would do harm, and a reference that nothing would read.

    Raises:
        UserError: naming the option.
    """
    for name, value, harm in (
        ("kl_coef", kl_coef, "drive the policy away"),
        ("entropy_coef", entropy_coef, "take randomness away"),
    ):
        if value < 0:
            raise UserError(f"{name} must be at least 0, not {value}: a negative one would {harm}")
    if reference is not None and kl_coef == 0:
        raise UserError("reference is set but kl_coef is 0, so it would never be used: set kl_coef or drop reference")


def clip_bounds(clip_low: float, clip_high: float | None) -> tuple[float, float]:
    """Return ε_low and ε_high, the same if the second is not given.

    Raises:
        UserError: if one of them is out of range.
    """
    high = clip_low if clip_high is None else clip_high
    if not 0 <= clip_low <= 1 or high < 0:
        raise UserError(f"clip_low must lie in [0, 1] and clip_high above 0, not {clip_low} and {clip_high}")
    return clip_low, high


def dual_clip_bound(dual_clip: float | None) -> float | None:
    """Return c, or None for no second clip.

    Raises:
        UserError: if it is not above 1.
    """
    if dual_clip is not None and dual_clip <= 1:
        raise UserError(f"dual_clip must be above 1, or null for none, not {dual_clip}")
    return dual_clip


def weight_bounds(weight_low: float, weight_high: float) -> tuple[float, float]:
    """Return the bounds of an importance weight.

    Raises:
        UserError: if 1, the weight on policy, does not lie between them.
    """
    if not 0 <= weight_low <= 1 <= weight_high:
        raise UserError(f"weight_low must lie in [0, 1] and weight_high above 1, not {weight_low} and {weight_high}")
    return weight_low, weight_high


def warn_of_estimator(estimator: KLEstimator, place: str) -> None:
    """Name the combinations whose gradient is none, or not the divergence's."""
    if place == "loss" and estimator == "k1":
        log.warning("kl_estimator: k1 in the loss has no gradient in expectation, only noise: use k2, k3 or rho_k3")
    if place == "reward" and estimator != "k1":
        log.warning(
            "kl_estimator: %s in the reward does not follow the divergence: its pull fades near the reference, where it can "
            "even point away: use k1, whose gradient there is exact",
            estimator,
        )

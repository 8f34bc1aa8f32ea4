"""Clipped importance-sampling weight policy optimization."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rl_lightning.algorithms.online import COMPARES_A_GROUP, OnlineModule
from rl_lightning.algorithms.policy import Outputs, vanishes_with_advantage
from rl_lightning.algorithms.settings import weight_bounds
from rl_lightning.functional import Reduction, weighted_surrogate
from rl_lightning.types import Microbatch


class CISPO(OnlineModule):
    """REINFORCE with an importance weight that is bounded, so that no token loses its gradient.

    J = E 1/Σ_i |y_i| Σ_i Σ_t sg(clip(ρ, w_low, w_high)) A log π_θ(y_{i,t})

    with A as in GRPO and no gradient through sg. The gradient is Σ_{i,t} clip(ρ, w_low, w_high) A ∇ log π_θ / Σ_i |y_i|, on and off
    policy: where GRPO's clip takes a token out, its weight stays at the bound. At θ = θ_old it is GRPO's.

    Source: CISPO (arXiv 2506.13585) Eq. 4 and 5. Departures, and what the paper leaves open:

    - The bounds are those of the weight itself. The paper writes 1 − ε and 1 + ε, sets no lower bound, and does not say the upper
      one; 5 is within the range of ScaleRL (2510.13786), 4 to 8.
    - J is worth clip(ρ) A, not clip(ρ) A log π_θ, so that losses are comparable; the gradient is the same.

    With both bounds at 1 it is REINFORCE, whatever ρ is; without bounds it has the gradient of GRPO without a clip.

    Args:
        weight_low: w_low in [0, 1]; above 0 what the policy has given up is pushed on with all the same.
        weight_high: w_high ≥ 1; no bound at infinity (`.inf`).
        reduction: how tokens are averaged; `group_token_mean` is the paper's.
        **more: kl_coef, kl_in, kl_estimator, reference, entropy_coef, sampler_correction, ratio_level, policy, load,
            optimizer, lora: see `OnlineModule` and `ObjectiveModule`.
    """

    formula = "J = E 1/Σ_i|y_i| Σ_i Σ_t sg(clip(ρ, w_low, w_high)) A log π_θ"
    needs = COMPARES_A_GROUP

    def __init__(
        self, weight_low: float = 0.0, weight_high: float = 5.0, reduction: Reduction = "group_token_mean", **more: Any
    ) -> None:
        super().__init__(reduction=reduction, **more)
        self.weight_low, self.weight_high = weight_bounds(weight_low, weight_high)

    @vanishes_with_advantage
    def surrogate(self, batch: Microbatch, logprobs: Tensor) -> Tensor:
        """Return sg(clip(ρ)) A log π_θ of every response token by its gradient, (B, R)."""
        assert batch.advantages is not None
        weight = self.ratio(batch, logprobs).clamp(self.weight_low, self.weight_high)
        return weighted_surrogate(logprobs, batch.advantages, weight)

    def observed(self, batch: Microbatch, outputs: Outputs) -> dict[str, Tensor]:
        """Return what is logged of the tokens of a microbatch, (B, R) each, where a bound holds the weight among it."""
        ratio = self.ratio(batch, outputs.logprobs)
        held = (ratio < self.weight_low) | (ratio > self.weight_high)
        return super().observed(batch, outputs) | {"cispo/bounded_fraction": held.float()}

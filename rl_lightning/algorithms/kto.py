"""Kahneman–Tversky optimization."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rl_lightning.algorithms.pairs import ReferencedPairModule
from rl_lightning.errors import UserError


class KTO(ReferencedPairModule):
    """Judge each response alone, as a gain or a loss from where the policy stands: a sure one, either way, teaches little.

    J = E ½ [ λ⁺ σ( β (m⁺ − z₀) ) + λ⁻ σ( β (z₀ − m⁻) ) ],   m± = Σ_t log π_θ(y±_t | x, y±_<t)/π_ref(y±_t | x, y±_<t)

    The gradient is E ½ [ λ⁺ β σ(u)σ(−u) ∇m⁺ − λ⁻ β σ(v)σ(−v) ∇m⁻ ] with u = β (m⁺ − z₀) and v = β (z₀ − m⁻): z₀ is a number.

    Source: KTO (arXiv 2402.01306) Eq. 7. Departures:

    - z₀ is max(0, mean of m over all responses of the optimizer step before), 0 in the first step; it is logged as `kto/z0`, and a
      checkpoint has it. The paper takes mismatched pairs, a prompt with the response to another one, in the microbatch at hand,
      so that z₀ depends on how a step is cut into microbatches and ranks; this one does not. It is 0 while the policy finds the
      data less likely than the reference does, which is so where the reference has sampled them.
    - Chosen and rejected responses of pairs are the paper's desirable and undesirable ones, as many of each.

    Args:
        beta: β > 0.
        desirable: λ⁺ > 0.
        undesirable: λ⁻ > 0.
        **pair_options: reference, sft_coef, beyond_shorter, policy, load, optimizer, reduction, lora: see
            `ReferencedPairModule`, `PairModule` and `ObjectiveModule`.
    """

    formula = "J = E ½ [ λ⁺ σ(β(m⁺ − z₀)) + λ⁻ σ(β(z₀ − m⁻)) ],  m± = Σ_t log π_θ/π_ref(y±_t)"
    shown_as = "kto"

    z0: Tensor

    def __init__(
        self, beta: float = 0.1, desirable: float = 1.0, undesirable: float = 1.0, **pair_options: Any
    ) -> None:
        super().__init__(length_normalize=False, **pair_options)
        if min(beta, desirable, undesirable) <= 0:
            raise UserError(
                "beta, desirable and undesirable must be above 0: without one of them nothing, or half, is learnt"
            )
        self.beta, self.desirable, self.undesirable, self.reward_scale = beta, desirable, undesirable, beta
        self.register_buffer("z0", torch.zeros(()))

    def of_pair(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Return the mean of λ⁺ σ(β (m⁺ − z₀)) and λ⁻ σ(β (z₀ − m⁻)), (B/2,)."""
        gain, loss = (self.beta * (chosen - self.z0)).sigmoid(), (self.beta * (self.z0 - rejected)).sigmoid()
        return (self.desirable * gain + self.undesirable * loss) / 2

    def on_step_observed(self, metrics: Mapping[str, float]) -> None:
        """Log this step's z₀, and take the next one's from what is known of this."""
        self.log("kto/z0", float(self.z0))
        self.z0.fill_(max(0.0, metrics["kto/chosen_reward"] + metrics["kto/rejected_reward"]) / (2 * self.beta))

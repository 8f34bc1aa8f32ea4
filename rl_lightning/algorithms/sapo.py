"""Soft adaptive policy optimization."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rl_lightning.algorithms.online import COMPARES_A_GROUP, OnlineModule
from rl_lightning.algorithms.policy import Outputs, vanishes_with_advantage
from rl_lightning.errors import UserError
from rl_lightning.functional import soft_surrogate
from rl_lightning.types import Microbatch


class SAPO(OnlineModule):
    """GRPO with a soft gate where the clip was: a token's gradient fades as its ratio leaves 1, faster where A is negative.

    J = E 1/G Σ_i 1/|y_i| Σ_t (4/τ) σ(τ (ρ − 1)) A_{i,t},   τ = τ_up where A > 0, τ_down elsewhere

    with A as in GRPO. The gradient is E 1/G Σ_i 1/|y_i| Σ_t ρ A sech²(τ (ρ − 1)/2) ∇ log π_θ. At θ = θ_old it is GRPO's, whatever τ
    is; as τ → 0 it is that of GRPO without a clip.

    Source: SAPO (arXiv 2511.20347), and its 1.0 and 1.05. J is worth 2 A/τ at ρ = 1, so the loss is no mean of advantages.

    Args:
        tau_up: τ > 0 of tokens with A > 0.
        tau_down: τ > 0 of the others.
        **online_options: kl_coef, kl_in, kl_estimator, reference, entropy_coef, sampler_correction, ratio_level, policy, load,
            optimizer, reduction, lora: see `OnlineModule` and `ObjectiveModule`.
    """

    formula = "J = E 1/G Σ_i 1/|y_i| Σ_t (4/τ) σ(τ(ρ − 1)) A,  τ = τ_up where A > 0, else τ_down"
    needs = COMPARES_A_GROUP

    def __init__(self, tau_up: float = 1.0, tau_down: float = 1.05, **online_options: Any) -> None:
        super().__init__(**online_options)
        if tau_up <= 0 or tau_down <= 0:
            raise UserError(f"tau_up and tau_down must be above 0, not {tau_up} and {tau_down}: at 0 there is no gate")
        self.tau_up, self.tau_down = tau_up, tau_down

    @vanishes_with_advantage
    def surrogate(self, batch: Microbatch, logprobs: Tensor) -> Tensor:
        """Return (4/τ) σ(τ (ρ − 1)) A of every response token, (B, R)."""
        assert batch.advantages is not None
        return soft_surrogate(self.ratio(batch, logprobs), batch.advantages, self.tau_up, self.tau_down)

    def observed(self, batch: Microbatch, outputs: Outputs) -> dict[str, Tensor]:
        """Return what is logged of the tokens of a microbatch, (B, R) each, how far the gate is open among it: 1 at ρ = 1."""
        assert batch.advantages is not None
        tau = torch.where(batch.advantages > 0, self.tau_up, self.tau_down)
        gate = 1 - (tau * (self.ratio(batch, outputs.logprobs) - 1) / 2).tanh().square()
        return super().observed(batch, outputs) | {"sapo/gate_mean": gate}

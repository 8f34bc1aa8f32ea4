"""A new objective in a few lines.

Soft adaptive policy optimization replaces the hard clip by a smooth gate f(ρ) = (4/τ) σ(τ (ρ − 1)), whose slope is 1 at
ρ = 1 and fades on both sides, faster where the advantage is negative (SAPO, arXiv 2511.20347).

Run it:

    python -m rl_lightning fit --config configs/grpo.yaml --model=examples.new_objective.SAPO --data.epochs_per_rollout=2
"""

from __future__ import annotations

import torch
from torch import Tensor

from rl_lightning import GRPO, Microbatch


class SAPO(GRPO):
    """GRPO with a soft gate in place of the clip; `tau_up` and `tau_down` set how fast it closes."""

    formula = "J = E 1/G Σ_i 1/|y_i| Σ_t (4/τ) σ(τ(ρ − 1)) A"

    def __init__(self, tau_up: float = 1.0, tau_down: float = 1.05, **kwargs) -> None:
        super().__init__(**kwargs)
        self.tau_up, self.tau_down = tau_up, tau_down

    def objective(self, batch: Microbatch, logprobs: Tensor) -> Tensor:
        """Return the gated advantage."""
        ratio = self.ratio(batch, logprobs)
        tau = torch.where(batch.advantages > 0, ratio.new_tensor(self.tau_up), ratio.new_tensor(self.tau_down))
        return 4 / tau * torch.sigmoid(tau * (ratio - 1)) * batch.advantages

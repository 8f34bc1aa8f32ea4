"""A new objective in a few lines.

Tapered off-policy REINFORCE pushes up what was good whatever the ratio is, and lets go of what was bad as it becomes unlikely: its
weight is 1 where A > 0, and the response's own ratio, at most 1, elsewhere (TOPR, arXiv 2503.14286).

Run it:

    python -m rl_lightning fit --config configs/grpo.yaml --model=examples.new_objective.TOPR --data.epochs_per_rollout=2
"""

from __future__ import annotations

import torch

from rl_lightning import OnlineModule
from rl_lightning.algorithms import vanishes_with_advantage
from rl_lightning.functional import weighted_surrogate


class TOPR(OnlineModule):
    """REINFORCE with the weight 1 where A > 0, and min(ρ, 1) elsewhere, ρ the ratio of the whole response."""

    formula = "J = E 1/G Σ_i 1/|y_i| Σ_t sg(w_i) A log π_θ,  w = 1 where A > 0, else min(ρ, 1)"
    needs = {"advantages": "rl_lightning.callbacks.GroupNormalize"}  # noqa: RUF012

    def __init__(self, **options) -> None:
        super().__init__(ratio_level="sequence", **options)

    @vanishes_with_advantage
    def surrogate(self, batch, logprobs):
        """Return sg(w) A log π_θ by its gradient, (B, R)."""
        weight = torch.where(batch.advantages > 0, 1, self.ratio(batch, logprobs).clamp(max=1))
        return weighted_surrogate(logprobs, batch.advantages, weight)

"""Divergence proximal policy optimization, with the total variation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rl_lightning.algorithms.online import COMPARES_A_GROUP, OnlineModule, old_logprobs
from rl_lightning.algorithms.policy import Outputs, vanishes_with_advantage
from rl_lightning.algorithms.settings import weight_bounds
from rl_lightning.errors import UserError
from rl_lightning.functional import Reduction, weighted_surrogate
from rl_lightning.types import Microbatch


class DPPO(OnlineModule):
    """Take a token out once its *probability* has moved too far, not its ratio: DPPO-TV.

    J = E 1/(G L_max) Σ_i Σ_t M_{i,t} sg(min(ρ, C)) A log π_θ(y_{i,t})

    M = 0 where A > 0 and π_θ − π_old > δ, or A < 0 and π_old − π_θ > δ, and 1 elsewhere; A as in GRPO. The gradient is
    Σ_{i,t} M min(ρ, C) A ∇ log π_θ / (G L_max). With a large vocabulary the ratio of an unlikely token leaves a clip after a change
    that hardly moves the distribution, and that of a likely one never does: |π_θ − π_old| bounds the total variation of both.
    At θ = θ_old it is GRPO's gradient.

    Source: DPPO (arXiv 2602.04879) Eq. 13; δ = 0.15 and C = 10⁴ are those of its authors' script. Departure: J is worth
    min(ρ, C) A, so that losses are comparable.

    Args:
        delta: δ in (0, 1], the most that a token's probability may move to where A pulls it.
        weight_high: C ≥ 1, the largest importance weight; no bound at infinity (`.inf`).
        reduction: how tokens are averaged; `constant` is the paper's.
        **options: kl_coef, kl_in, kl_estimator, reference, entropy_coef, sampler_correction, ratio_level, policy, load,
            optimizer, lora: see `OnlineModule` and `ObjectiveModule`.
    """

    formula = "J = E 1/(G L_max) Σ_i Σ_t sg(min(ρ, C)) A log π_θ,  without tokens whose π_θ has moved by more than δ"
    needs = COMPARES_A_GROUP

    def __init__(
        self, delta: float = 0.15, weight_high: float = 1e4, reduction: Reduction = "constant", **options: Any
    ) -> None:
        super().__init__(reduction=reduction, **options)
        if not 0 < delta <= 1:
            raise UserError(f"delta must lie in (0, 1], as probabilities do, not {delta}")
        self.delta, (_, self.weight_high) = delta, weight_bounds(0.0, weight_high)

    @vanishes_with_advantage
    def surrogate(self, batch: Microbatch, logprobs: Tensor) -> Tensor:
        """Return M sg(min(ρ, C)) A log π_θ of every response token by its gradient, (B, R)."""
        assert batch.advantages is not None
        weight = self.ratio(batch, logprobs).clamp(max=self.weight_high)
        return weighted_surrogate(logprobs, batch.advantages, torch.where(self.masked(batch, logprobs), 0, weight))

    def masked(self, batch: Microbatch, logprobs: Tensor) -> Tensor:
        """Return which tokens are out, (B, R) bool: their probability has moved too far to where A pulls it."""
        assert batch.advantages is not None
        return batch.advantages.sign() * (logprobs.exp() - old_logprobs(batch, logprobs).exp()) > self.delta

    def observed(self, batch: Microbatch, outputs: Outputs) -> dict[str, Tensor]:
        """Return what is logged of the tokens of a microbatch, (B, R) each, which of them are out among it."""
        return super().observed(batch, outputs) | {"dppo/masked_fraction": self.masked(batch, outputs.logprobs).float()}

"""Odds ratio preference optimization."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rl_lightning.algorithms.pairs import PairModule
from rl_lightning.errors import UserError
from rl_lightning.functional import bradley_terry, log_odds


class ORPO(PairModule):
    """Imitate the chosen response, and make its odds higher than those of the rejected one: fine-tuning and preferences in one.

    J = E [ m⁺ + λ log σ( o⁺ − o⁻ ) ],   o± = log p±/(1 − p±),   p± = e^{m±},   m± = 1/|y±| Σ_t log π_θ(y±_t | x, y±_<t)

    The gradient is E [ (1 + λς/(1 − p⁺)) ∇m⁺ − λς/(1 − p⁻) ∇m⁻ ] with ς = σ(o⁻ − o⁺).

    Source: ORPO (arXiv 2403.07691) Eq. 4, 6 and 7. There is no reference.

    Args:
        beta: λ ≥ 0, the weight of the odds ratio.
        sft_coef: weight of m⁺; 1 in the paper.
        **pair_options: beyond_shorter, policy, load, optimizer, reduction, lora: see `PairModule` and `ObjectiveModule`.
    """

    formula = "J = E [ m⁺ + λ log σ(o⁺ − o⁻) ],  o = m − log(1 − e^m),  m± = 1/|y±| Σ_t log π_θ(y±_t)"
    shown_as = "orpo"

    def __init__(self, beta: float = 0.1, sft_coef: float = 1.0, **pair_options: Any) -> None:
        super().__init__(length_normalize=True, sft_coef=sft_coef, **pair_options)
        if beta < 0:
            raise UserError(f"beta must be at least 0, not {beta}: below it the wrong response is learnt")
        self.beta = self.reward_scale = beta

    def of_pair(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Return λ log σ(o⁺ − o⁻), (B/2,)."""
        return self.beta * bradley_terry(log_odds(chosen) - log_odds(rejected))

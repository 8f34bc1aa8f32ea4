"""Simple preference optimization."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rl_lightning.algorithms.pairs import PairModule
from rl_lightning.errors import UserError
from rl_lightning.functional import bradley_terry


class SimPO(PairModule):
    """DPO without a reference: the chosen response must be likelier a token than the rejected one, by a margin.

    J = E log σ( β (m⁺ − m⁻) − γ ),   m± = 1/|y±| Σ_t log π_θ(y±_t | x, y±_<t)

    The gradient is E βς [ ∇m⁺ − ∇m⁻ ] with ς = σ(γ − β (m⁺ − m⁻)). Nothing but the margin and a small learning rate keeps the policy
    where it was.

    Source: SimPO (arXiv 2405.14734); β = 2 and γ/β = 0.25 are in its authors' code. With `length_normalize: false`, a margin of 0
    and `sft_coef: 1` it is CPO (2401.08417).

    Args:
        beta: β > 0.
        margin: γ/β ≥ 0, the margin in units of m: nats a token. TRL's `simpo_gamma` is γ, β times this.
        **pair_options: length_normalize, sft_coef, beyond_shorter, policy, load, optimizer, reduction, lora: see `PairModule`
            and `ObjectiveModule`.
    """

    formula = "J = E log σ( β (m⁺ − m⁻ − margin) ),  m± = 1/|y±| Σ_t log π_θ(y±_t)"
    shown_as = "simpo"

    def __init__(self, beta: float = 2.0, margin: float = 0.25, **pair_options: Any) -> None:
        super().__init__(**pair_options)
        if beta <= 0 or margin < 0:
            raise UserError(f"beta must be above 0 and margin at least 0, not {beta} and {margin}")
        self.beta, self.margin, self.reward_scale = beta, margin, beta

    def of_pair(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Return log σ(β (m⁺ − m⁻ − margin)), (B/2,)."""
        return bradley_terry(self.beta * (chosen - rejected - self.margin))

"""Robust direct preference optimization."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rl_lightning.algorithms.dpo import DPO
from rl_lightning.functional import robust_bradley_terry


class RobustDPO(DPO):
    """DPO's objective on clean pairs, without bias, from pairs of which a known share is the wrong way round.

    J = E [ (1 − ε) log σ(z) − ε log σ(−z) ] / (1 − 2ε),   z = β m⁺ − β m⁻

    with m as in DPO. In expectation over labels that are turned round with probability ε, J is DPO's on the right labels; its
    variance is larger. The gradient is E β [ (1 − ε) σ(−z) + ε σ(z) ] / (1 − 2ε) [ ∇m⁺ − ∇m⁻ ]. At ε = 0 it is DPO.

    Source: rDPO (arXiv 2403.00409). `label_smoothing` of `DPO` has the other sign, cDPO: it holds z at log((1 − ε)/ε), where this
    one goes on pushing.

    Args:
        label_smoothing: ε in [0, 0.5), the share of wrong labels.
        **dpo_options: reference, beta, length_normalize, sft_coef, beyond_shorter, policy, load, optimizer, reduction, lora:
            see `DPO`.
    """

    formula = "J = E [ (1 − ε) log σ(z) − ε log σ(−z) ] / (1 − 2ε),  z = β m⁺ − β m⁻"

    def __init__(self, label_smoothing: float = 0.1, **dpo_options: Any) -> None:
        super().__init__(label_smoothing=label_smoothing, **dpo_options)

    def of_pair(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Return [(1 − ε) log σ(z) − ε log σ(−z)] / (1 − 2ε), (B/2,)."""
        return robust_bradley_terry(self.beta * (chosen - rejected), self.label_smoothing)

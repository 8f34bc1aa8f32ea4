"""Direct preference optimization."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rl_lightning.algorithms.pairs import ReferencedPairModule
from rl_lightning.errors import UserError
from rl_lightning.functional import dpo_objective

#: β that is customary for means over tokens, and for sums.
_MEAN_BETA, _SUM_BETA = 5.0, 0.1


class DPO(ReferencedPairModule):
    """Make the chosen response of a pair likelier than the rejected one, measured from a reference; no reward model.

    J = E log σ( β m⁺ − β m⁻ ),   m± = 1/|y±| Σ_t log π_θ(y±_t | x, y±_<t)/π_ref(y±_t | x, y±_<t)

    over prompts x and pairs y⁺, y⁻ ~ π_sft. With ς = σ(β m⁻ − β m⁺), one number a pair, the gradient is

    ∇J = E βς [ 1/|y⁺| Σ_t ∇ log π_θ(y⁺_t | ·) − 1/|y⁻| Σ_t ∇ log π_θ(y⁻_t | ·) ]

    At θ = ref J = −log 2 and ς = 1/2.

    Source: the notebook; DeepSeekMath (arXiv 2402.03300) A.1.4; Rafailov et al. (2305.18290) Eq. 7. Departures:

    - The notebook writes ς_t, but ς is the same for every token: the sum inside re-binds t. DeepSeekMath's Eq. 14 prints
      no β before the gradient and no mean inside σ; without β the gradient is wrong by the factor 1/β.
    - Rafailov et al. take sums over tokens, `length_normalize: false`. A mean is |y| times smaller, so β is another
      number: 0.1 is theirs for sums, 5 that of Tülu 3 (2411.15124) for means.
    - `label_smoothing` ε is in neither: (1 − ε) log σ(z) + ε log σ(−z), for pairs of which a share ε is the wrong way round. This
      is the conservative DPO of Mitchell's note (2023); `RobustDPO` is the unbiased one.
    - `beyond_shorter` is the α of LD-DPO (2409.06411), and `sft_coef` that of RPO (2404.19733): in neither either.

    Args:
        reference: the frozen policy π_ref; by default the policy as it began.
        beta: β > 0, how dear it is to move away from the reference; if null, 5 for means and 0.1 for sums.
        length_normalize: m is the mean over a response's tokens, not the sum.
        label_smoothing: ε in [0, 0.5).
        **pair_options: sft_coef, beyond_shorter, policy, load, optimizer, reduction, lora: see `ReferencedPairModule`,
            `PairModule` and `ObjectiveModule`.
    """

    formula = "J = E log σ( β/|y⁺| Σ_t log π_θ/π_ref(y⁺_t) − β/|y⁻| Σ_t log π_θ/π_ref(y⁻_t) )"
    shown_as = "dpo"

    def __init__(
        self,
        reference: str | None = None,
        beta: float | None = None,
        length_normalize: bool = True,
        label_smoothing: float = 0.0,
        **pair_options: Any,
    ) -> None:
        super().__init__(reference=reference, length_normalize=length_normalize, **pair_options)
        if beta is not None and beta <= 0:
            raise UserError(f"beta must be above 0, not {beta}: at 0 nothing is learnt, below it the wrong response is")
        if not 0 <= label_smoothing < 0.5:
            raise UserError(
                f"label_smoothing must lie in [0, 0.5), not {label_smoothing}: it is the share of wrong labels"
            )
        self.beta = self.reward_scale = (_MEAN_BETA if length_normalize else _SUM_BETA) if beta is None else beta
        self.label_smoothing = label_smoothing

    def of_pair(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Return log σ(β m⁺ − β m⁻), (B/2,)."""
        return dpo_objective(chosen, rejected, self.beta, self.label_smoothing)

"""Identity preference optimization."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rl_lightning.algorithms.pairs import ReferencedPairModule
from rl_lightning.errors import UserError

#: τ for means over tokens, and for sums.
_MEAN_TAU, _SUM_TAU = 1.0, 0.1


class IPO(ReferencedPairModule):
    """Bring the gap between the responses of a pair to a set size, and no further: no overconfidence where pairs are unanimous.

    J = −E ( h − 1/(2τ) )²,   h = m⁺ − m⁻,   m± = 1/|y±| Σ_t log π_θ(y±_t | x, y±_<t)/π_ref(y±_t | x, y±_<t)

    The gradient is −E 2 (h − 1/(2τ)) [ ∇m⁺ − ∇m⁻ ]: 0 at h = 1/(2τ), and turned round beyond it.

    Source: IPO (arXiv 2310.12036) Eq. 17. Departures: the paper takes sums, `length_normalize: false`, with which τ means something
    else for every length; its authors and TRL take means. 1/(2τ) is then a margin in nats *a token*: τ = 0.1 of the paper asks
    for 5, which no policy reaches unharmed, so the default is 1.

    Args:
        tau: τ > 0; if null, 1 for means and 0.1 for sums.
        length_normalize: m is the mean over a response's tokens, not the sum.
        **pair_options: reference, sft_coef, beyond_shorter, policy, load, optimizer, reduction, lora: see
            `ReferencedPairModule`, `PairModule` and `ObjectiveModule`.
    """

    formula = "J = −E ( m⁺ − m⁻ − 1/(2τ) )²,  m± = 1/|y±| Σ_t log π_θ/π_ref(y±_t)"
    shown_as = "ipo"

    def __init__(self, tau: float | None = None, length_normalize: bool = True, **pair_options: Any) -> None:
        super().__init__(length_normalize=length_normalize, **pair_options)
        if tau is not None and tau <= 0:
            raise UserError(f"tau must be above 0, not {tau}: 1/(2τ) is the gap that is aimed at")
        # At the optimum the implicit rewards of a unanimous pair are 1/2 apart.
        self.tau = self.reward_scale = (_MEAN_TAU if length_normalize else _SUM_TAU) if tau is None else tau

    def of_pair(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Return −(m⁺ − m⁻ − 1/(2τ))², (B/2,)."""
        return -(chosen - rejected - 1 / (2 * self.tau)).square()

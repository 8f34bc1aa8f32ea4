"""Group relative policy optimization."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rl_lightning.algorithms.online import COMPARES_A_GROUP, OnlineModule, clip_fractions
from rl_lightning.algorithms.policy import Outputs, vanishes_with_advantage
from rl_lightning.algorithms.settings import clip_bounds, dual_clip_bound
from rl_lightning.functional import clipped_surrogate
from rl_lightning.types import Microbatch


class GRPO(OnlineModule):
    """Compare the samples of a prompt with each other; no value model.

    J = E 1/G Σ_i 1/|y_i| Σ_t [ S_ε(π_θ/π_old, A_{i,t}) − β D(π_ref/π_θ) ],   D(r) = r − log r − 1

    with S_ε(r, a) = min(r a, clip(r, 1−ε, 1+ε) a) and A_{i,t} = (r_i − mean(r)) / std(r) over the group of y_i.

    The gradient, on or off policy, is Σ_i 1/|y_i| Σ_t [ρ A 1{clip inactive} + β (π_ref/π_θ − 1)] ∇ log π_θ, /G.

    Source: DeepSeekMath (arXiv 2402.03300) Eq. 3 and 4. Departures, and what the notebook leaves open:

    - The notebook prints no β before D; that is `kl_coef: 1`. The default is the paper's 0.04.
    - D is unbiased for KL(π_θ‖π_ref) on policy, but as a loss its gradient is that of KL(π_ref‖π_θ).
    - Neither defines std's divisor: `GroupNormalize` takes G − 1, adds 1e-6, and gives a group without spread 0.
    - Each group counts once, as in the paper; all groups of an optimizer step have the same size.

    Advantages come from the `GroupNormalize` callback.

    Args:
        kl_coef: β ≥ 0; at 0 no reference is loaded.
        clip_low: ε below 1, in [0, 1].
        clip_high: ε above 1; the same as `clip_low` if null.
        dual_clip: c > 1: where A < 0 the surrogate is at least c A, so that a token with ρ > c has no gradient; off if null.
        **online_options: kl_in, kl_estimator, reference, entropy_coef, sampler_correction, ratio_level, policy, load,
            optimizer, reduction, lora: see `OnlineModule` and `ObjectiveModule`.
    """

    formula = "J = E 1/G Σ_i 1/|y_i| Σ_t [ min(ρA, clip(ρ, 1−ε, 1+ε)A) − β(π_ref/π_θ − log π_ref/π_θ − 1) ]"
    needs = COMPARES_A_GROUP

    def __init__(
        self,
        kl_coef: float = 0.04,
        clip_low: float = 0.2,
        clip_high: float | None = None,
        dual_clip: float | None = None,
        **online_options: Any,
    ) -> None:
        super().__init__(kl_coef=kl_coef, **online_options)
        self.clip_low, self.clip_high = clip_bounds(clip_low, clip_high)
        self.dual_clip = dual_clip_bound(dual_clip)

    @vanishes_with_advantage
    def surrogate(self, batch: Microbatch, logprobs: Tensor) -> Tensor:
        """Return S_ε(ρ, A) of every response token, (B, R)."""
        assert batch.advantages is not None
        ratio = self.ratio(batch, logprobs)
        return clipped_surrogate(ratio, batch.advantages, self.clip_low, self.clip_high, self.dual_clip)

    def observed(self, batch: Microbatch, outputs: Outputs) -> dict[str, Tensor]:
        """Return what is logged of the tokens of a microbatch, (B, R) each, what the clip does among it."""
        ratio = self.ratio(batch, outputs.logprobs)
        return super().observed(batch, outputs) | clip_fractions(ratio, batch, self.clip_low, self.clip_high)

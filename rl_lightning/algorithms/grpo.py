"""Group relative policy optimization."""

from __future__ import annotations

from typing import Any

from rl_lightning.algorithms.online import COMPARES_A_GROUP, ClippedModule


class GRPO(ClippedModule):
    """Compare the samples of a prompt with each other; no value model.

    J = E 1/G Σ_i 1/|y_i| Σ_t [ S_ε(π_θ/π_old, A_{i,t}) − β D(π_ref/π_θ) ],   D(r) = r − log r − 1

    with S_ε(r, a) = min(r a, clip(r, 1−ε, 1+ε) a) and A_{i,t} = (r_i − mean(r)) / std(r) over the group of y_i (`GroupNormalize`).

    The gradient, on or off policy, is Σ_i 1/|y_i| Σ_t [ρ A 1{clip inactive} + β (π_ref/π_θ − 1)] ∇ log π_θ, /G.

    Source: DeepSeekMath (arXiv 2402.03300) Eq. 3 and 4. Departures, and what the notebook leaves open:

    - The notebook prints no β before D; that is `kl_coef: 1`. The default is the paper's 0.04.
    - D is unbiased for KL(π_θ‖π_ref) on policy, but as a loss its gradient is that of KL(π_ref‖π_θ).
    - Neither defines std's divisor: `GroupNormalize` takes G − 1, adds 1e-6, and gives a group without spread 0.
    - Each group counts once, as in the paper; all groups of an optimizer step have the same size.

    Args:
        kl_coef: β ≥ 0; at 0 no reference is loaded.
        **clipped_options: clip_low, clip_high, dual_clip: see `ClippedModule`; kl_in, kl_estimator, reference, entropy_coef,
            sampler_correction, ratio_level, policy, load, optimizer, reduction, lora: see `OnlineModule` and `ObjectiveModule`.
    """

    formula = "J = E 1/G Σ_i 1/|y_i| Σ_t [ min(ρA, clip(ρ, 1−ε, 1+ε)A) − β(π_ref/π_θ − log π_ref/π_θ − 1) ]"
    needs = COMPARES_A_GROUP

    def __init__(self, kl_coef: float = 0.04, **clipped_options: Any) -> None:
        super().__init__(kl_coef=kl_coef, **clipped_options)

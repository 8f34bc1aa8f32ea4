"""Decoupled clip and dynamic sampling policy optimization."""

from __future__ import annotations

from typing import Any

from rl_lightning.algorithms.grpo import GRPO
from rl_lightning.functional import Reduction


class DAPO(GRPO):
    """GRPO without the divergence, with more room above 1 for the ratio, and every token of a group worth the same.

    J = E 1/Σ_i |y_i| Σ_i Σ_t S_{ε_low, ε_high}(π_θ/π_old, A_{i,t}),   groups with 0 < correct < G only

    with S(r, a) = min(r a, clip(r, 1 − ε_low, 1 + ε_high) a) and A_{i,t} = (r_i − mean(r)) / std(r) over the group of y_i.

    The gradient is Σ_{i,t} ρ A 1{clip inactive} ∇ log π_θ / Σ_i |y_i|; the clip is inactive unless A > 0 and ρ > 1 + ε_high,
    or A < 0 and ρ < 1 − ε_low. At π_θ = π_old it is A ∇ log π_θ / Σ_i |y_i|, whatever the clips: raising ε_high has no
    effect in a run with one update a rollout.

    The objective is GRPO's at `kl_coef: 0`; at equal clips and the same reduction the two algorithms are the same. What
    makes it DAPO besides are callbacks: `GroupNormalize` (A), `DynamicSampling` (the condition on groups),
    `OverlongShaping` (R_length), and rewards of plus and minus one:
    `{function: rl_lightning.rewards.functions.final_answer, arguments: {wrong: -1}}`.

    Source: DAPO (arXiv 2503.14476) Eq. 8 to 13. Departures, and what the notebook leaves open:

    - Eq. 8 divides by the tokens of each group, and averages over groups: `group_token_mean`. What the authors ran (verl),
      and TRL's, divides by the tokens of the whole optimizer batch: `reduction: token_mean`. The two agree where all
      groups have as many tokens.
    - The notebook does not define A; it is that of the whole reward, R_rule + R_length, between −2 and 1 (Eq. 9).
    - The condition is about correct answers, not about the spread of rewards: an all-correct group that R_length gives a
      spread is dropped too.
    - |y| > L_max never happens where L_max is the cap on new tokens; the ramp reaches −1 there anyway.
    - "Overlong filtering" is an ablation of the paper, not part of its final recipe: `OverlongFilter` does it.

    Args:
        clip_low: ε_low, in [0, 1].
        clip_high: ε_high ≥ 0.
        kl_coef: β ≥ 0; 0 in the paper, and then no reference is loaded.
        reduction: how tokens are averaged; see above.
        **online_options: dual_clip, kl_in, kl_estimator, reference, entropy_coef, sampler_correction, ratio_level, policy, load,
            optimizer, lora: see `GRPO`, `OnlineModule` and `ObjectiveModule`.
    """

    formula = "J = E 1/Σ_i|y_i| Σ_i Σ_t min(ρA, clip(ρ, 1−ε_low, 1+ε_high)A),  0 < correct < G"

    def __init__(
        self,
        clip_low: float = 0.2,
        clip_high: float = 0.28,
        kl_coef: float = 0.0,
        reduction: Reduction = "group_token_mean",
        **online_options: Any,
    ) -> None:
        super().__init__(kl_coef=kl_coef, clip_low=clip_low, clip_high=clip_high, reduction=reduction, **online_options)

"""Group sequence policy optimization."""

from __future__ import annotations

from typing import Any

from rl_lightning.algorithms.grpo import GRPO


class GSPO(GRPO):
    """GRPO with one ratio a response, the geometric mean of its tokens', and clips as near to 1 as such ratios are.

    J = E 1/G Σ_i S_ε(s_i, A_i),   s_i = (π_θ(y_i|x)/π_old(y_i|x))^{1/|y_i|},   S_ε(s, a) = min(s a, clip(s, 1−ε_low, 1+ε_high) a)

    The gradient is E 1/G Σ_i 1/|y_i| Σ_t s_i A_i 1{clip inactive} ∇ log π_θ(y_{i,t}): a clip takes a whole response out. At
    θ = θ_old it is GRPO's.

    Source: GSPO (arXiv 2507.18071) Eq. 5 to 7; the clips, and four updates a rollout, are its section 5.1. Departures:

    - Each token has the ratio's value with its own gradient, the paper's GSPO-token (Eq. 14, 15). Under `seq_mean` and with one
      advantage a response that is GSPO to the last digits; with an advantage a token it is GSPO-token.
    - Under another reduction it is another algorithm: `seq_sum` weighs responses by their length, which is LUSPO (2602.05261).

    Args:
        kl_coef: β ≥ 0; 0 in the paper, and then no reference is loaded.
        clip_low: ε_low in [0, 1].
        clip_high: ε_high ≥ 0. A third of all tokens clipped is usual here.
        **grpo_options: dual_clip, kl_in, kl_estimator, reference, entropy_coef, sampler_correction, policy, load, optimizer,
            reduction, lora: see `GRPO`, `OnlineModule` and `ObjectiveModule`.
    """

    formula = "J = E 1/G Σ_i min(s_i A_i, clip(s_i, 1−ε_low, 1+ε_high)A_i),  s_i = (π_θ(y_i)/π_old(y_i))^(1/|y_i|)"

    def __init__(
        self, kl_coef: float = 0.0, clip_low: float = 3e-4, clip_high: float = 4e-4, **grpo_options: Any
    ) -> None:
        super().__init__(
            kl_coef=kl_coef, clip_low=clip_low, clip_high=clip_high, ratio_level="sequence_mean", **grpo_options
        )

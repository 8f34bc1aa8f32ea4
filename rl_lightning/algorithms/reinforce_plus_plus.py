"""REINFORCE++."""

from __future__ import annotations

from typing import Any

import torch

from rl_lightning.algorithms.grpo import GRPO
from rl_lightning.errors import UserError
from rl_lightning.functional import Reduction, gae, masked_whiten
from rl_lightning.types import Rollout


class ReinforcePlusPlus(GRPO):
    """PPO's clip without a critic and without groups: the baseline is the mean over all tokens of a rollout.

    J = E 1/Σ|y| Σ_t S_ε(π_θ/π_old, A_t),   A = whiten( Σ_{s ≥ t} γ^{s−t} (r_s − β log π_old/π_ref(y_s)) )

    with r the reward, on the last token, or token by token where a callback gives such rewards; whitening shifts and scales to
    mean 0 and deviation 1 over the tokens of the rollout, on all ranks. The gradient is GRPO's, with this A.

    Source: REINFORCE++ (arXiv 2501.03262); β and ε are OpenRLHF's, of the same authors. Departure: the variance has the divisor
    n − 1 (verl), not n (OpenRLHF). A response is compared with the rollout, not with its group: easy prompts are learnt from as
    if their answers were good. `configs/recipe/reinforce_plus_plus_baseline.yaml` takes the group's mean off first.

    Args:
        kl_coef: β ≥ 0, the divergence in the reward; at 0 no reference is loaded.
        gamma: γ in [0, 1].
        reduction: how tokens are averaged.
        **grpo_options: clip_low, clip_high, dual_clip, kl_estimator, reference, entropy_coef, sampler_correction, ratio_level,
            policy, load, optimizer, lora: see `GRPO`, `OnlineModule` and `ObjectiveModule`.
    """

    formula = "J = E 1/Σ|y| Σ_t min(ρA, clip(ρ, 1−ε, 1+ε)A),  A = whitened return of r − β log π_old/π_ref"
    needs = {}  # noqa: RUF012
    fills = ("advantages",)

    def __init__(
        self, kl_coef: float = 0.01, gamma: float = 1.0, reduction: Reduction = "token_mean", **grpo_options: Any
    ) -> None:
        super().__init__(kl_coef=kl_coef, kl_in="reward", reduction=reduction, **grpo_options)
        if not 0 <= gamma <= 1:
            raise UserError(f"gamma must lie in [0, 1], not {gamma}")
        self.gamma = gamma

    def on_rollout_scored(self, rollout: Rollout) -> None:
        """Fill in advantages from rewards."""
        super().on_rollout_scored(rollout)
        rewards = self.token_rewards(rollout)
        returns, _ = gae(rewards, torch.zeros_like(rewards), rollout.response_mask, self.gamma, gae_lambda=1.0)
        rollout.advantages = masked_whiten(returns, rollout.response_mask, self.total)

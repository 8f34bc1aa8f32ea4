"""On-policy distillation."""

from __future__ import annotations

from typing import Any

import torch

from rl_lightning.algorithms.grpo import GRPO
from rl_lightning.functional import Reduction
from rl_lightning.types import Rollout


class Distillation(GRPO):
    """Learn from a teacher what it would have said in one's own place: each token sampled is worth how much likelier it finds it.

    J = E 1/Σ|y| Σ_t S_ε(π_θ/π_old, A_t),   A_t = log π_teacher(y_t | x, y_<t) − log π_old(y_t | x, y_<t)

    over y ~ π_old, with A a number from rollout time. No reward is learnt from: those that are listed are measured, and their
    weights may be 0. At θ = θ_old the gradient is, token by token, that of −KL(π_θ‖π_teacher) estimated by k2, the mode-seeking
    direction, at the prefixes that the student visits.

    Source: On-policy distillation (Thinking Machines, 2025); with the clip as in verl. Departures and limits: the divergence is
    of the token that was sampled, not over the vocabulary (that is GKD, arXiv 2306.13649); a token is credited with its own
    divergence only, a discount of 0. The teacher needs the student's tokenizer. With γ = 1 and a reward besides, it is GRPO
    with `reference: <teacher>`, `kl_in: reward`.

    Args:
        teacher: the frozen model to learn from: a local directory, a `.gguf` file, or a name on the hub.
        reduction: how tokens are averaged.
        **grpo_options: clip_low, clip_high, dual_clip, entropy_coef, sampler_correction, ratio_level, policy, load, optimizer,
            lora: see `GRPO`, `OnlineModule` and `ObjectiveModule`.
    """

    formula = "J = E 1/Σ|y| Σ_t min(ρA, clip(ρ, 1−ε, 1+ε)A),  A = log π_teacher − log π_old"
    needs = {}  # noqa: RUF012
    fills = ("advantages",)
    learns_from_rewards = False

    def __init__(self, teacher: str, reduction: Reduction = "token_mean", **grpo_options: Any) -> None:
        super().__init__(
            reference=teacher, kl_coef=1.0, kl_in="reward", kl_estimator="k1", reduction=reduction, **grpo_options
        )

    def on_rollout_scored(self, rollout: Rollout) -> None:
        """Fill in advantages: minus the divergence of each token from the teacher."""
        super().on_rollout_scored(rollout)
        assert rollout.kl_penalties is not None
        rollout.advantages = rollout.less_divergence(torch.zeros_like(rollout.kl_penalties))

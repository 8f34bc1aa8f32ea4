"""Proximal policy optimization."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from rl_lightning.algorithms.critic import CriticModule
from rl_lightning.algorithms.online import ClippedModule
from rl_lightning.errors import UserError
from rl_lightning.functional import gae, masked_variance, masked_whiten
from rl_lightning.types import Rollout


class PPO(ClippedModule, CriticModule):
    """Credit every token by what a critic expected before and after it.

    J = E 1/|y| Σ_t S_ε(π_θ/π_old, A_t),   S_ε(r, a) = min(r a, clip(r, 1−ε, 1+ε) a)

    with A_t = Σ_l (γλ)^l δ_{t+l}, δ_t = r_t + γ V(s_{t+1}) − V(s_t) and r_t = r(x, y≤t) − β log π_old/π_ref.

    The gradient is E 1/|y| Σ_t ρ_t A_t 1{clip inactive} ∇ log π_θ; the clip is active where A > 0 and ρ > 1 + ε, or A < 0 and
    ρ < 1 − ε. At θ = θ_old it is E 1/|y| Σ_t A_t ∇ log π_θ, the notebook's. Why:

    1. The expectation is over y ~ π_old, in which there is no θ: ∇ goes inside, and sampling adds no term.
    2. A_t is a number from rollout time, the divergence in r_t included: it has no gradient.
    3. ρ_t(θ_old) = 1 lies inside (1 − ε, 1 + ε), so nearby S_ε(ρ, A) = ρ A: smooth there, though it is not elsewhere.
    4. ∇ρ_t = ρ_t ∇ log π_θ, and ρ_t = 1.

    It is *not* the gradient of the expected reward: only the first update of a rollout has θ = θ_old; 1/|y| makes it that
    of E[R/|y|] (`reduction: seq_sum` has that of E[R]); GAE is biased for λ < 1; and the divergence in r_t depends on θ too,
    which changes nothing in expectation without 1/|y|, but does with it.

    Source: PPO (Schulman et al., arXiv 1707.06347) Eq. 7, 9 and 11; r_t: DeepSeekMath (2402.03300) Eq. 2. Departures, and
    what the notebook leaves open:

    - The paper averages over all tokens of the batch, `reduction: token_mean`; the notebook over those of each response first.
    - The last term of A_t has (γλ)^{T−t−1}; see `rl_lightning.functional.gae` on the T − t + 1 in print.
    - V after the last token is 0, also where the cap cut a response off, unless `bootstrap_truncated`.
    - The reward of a response goes to its last token, unless a callback has given one to each token.
    - π_θ in the notebook's r_t is the policy that sampled, as a number.
    - The notebook has no value loss: it is ½ (V − R̂)², R̂_t = A_t + V_old(s_t). `value_coef: 0.5` and `value_clip: 0.2`, off
      here, are OpenAI baselines' (`ppo2`); β = 0.05 is TRL's.
    - A λ of the critic's own and one that grows with the length are VC-PPO's (2503.01491) and VAPO's (2504.05118, α = 0.05).
    - Neither whitens advantages, as verl and TRL do, nor clips a second time, as verl does: both are options.

    Args:
        gamma: γ in [0, 1].
        gae_lambda: λ in [0, 1].
        critic_lambda: λ in [0, 1] of the critic's targets R̂; `gae_lambda` if null. At 1 they are returns, without bias.
        length_adaptive_lambda: α > 0: a response's own λ is 1 − 1/(α |y|), at least 0, in the place of `gae_lambda`; off if null.
        bootstrap_truncated: whether a response that the cap cut off is worth V of its last state beyond it, not 0.
        whiten_advantages: shift and scale the advantages of a rollout to mean 0 and deviation 1 over its tokens.
        kl_coef: β ≥ 0; at 0 no reference is loaded.
        kl_in: `reward` is the notebook's; see `OnlineModule`.
        **options: clip_low, clip_high, dual_clip: see `ClippedModule`; critic, critic_lr, value_coef, value_clip,
            value_warmup_rollouts: see `CriticModule`; kl_estimator, reference, entropy_coef, sampler_correction, ratio_level,
            policy, load, optimizer, reduction, lora: see `OnlineModule` and `ObjectiveModule`.
    """

    formula = "J = E 1/|y| Σ_t min(ρA, clip(ρ, 1−ε, 1+ε)A),  A = GAE of r − β log π_old/π_ref"
    fills = ("advantages", "returns")

    def __init__(
        self,
        gamma: float = 1.0,
        gae_lambda: float = 0.95,
        critic_lambda: float | None = None,
        length_adaptive_lambda: float | None = None,
        bootstrap_truncated: bool = False,
        whiten_advantages: bool = False,
        kl_coef: float = 0.05,
        kl_in: Literal["loss", "reward"] = "reward",
        **options: Any,
    ) -> None:
        super().__init__(kl_coef=kl_coef, kl_in=kl_in, **options)
        for name, value in (("gamma", gamma), ("gae_lambda", gae_lambda), ("critic_lambda", critic_lambda)):
            if value is not None and not 0 <= value <= 1:
                raise UserError(f"{name} must lie in [0, 1], not {value}")
        if length_adaptive_lambda is not None and length_adaptive_lambda <= 0:
            raise UserError(f"length_adaptive_lambda must be above 0, or null for none, not {length_adaptive_lambda}")
        self.gamma = gamma
        self.gae_lambda = gae_lambda
        self.critic_lambda = critic_lambda
        self.length_adaptive_lambda = length_adaptive_lambda
        self.bootstrap_truncated = bootstrap_truncated
        self.whiten_advantages = whiten_advantages

    def on_rollout_scored(self, rollout: Rollout) -> None:
        """Fill in advantages and returns from rewards and values."""
        super().on_rollout_scored(rollout)
        mask, values = rollout.response_mask, rollout.values
        assert values is not None
        after = None
        if self.bootstrap_truncated:
            assert rollout.bootstrap_values is not None
            after = torch.where(rollout.truncated, rollout.bootstrap_values, 0)
        rewards = self.token_rewards(rollout).to(values)
        own: float | Tensor = self.gae_lambda
        if self.length_adaptive_lambda is not None:
            own = (1 - 1 / (self.length_adaptive_lambda * mask.sum(1).to(values))).clamp(min=0)
        advantages, returns = gae(rewards, values, mask, self.gamma, own, after)
        if self.critic_lambda is not None:
            _, returns = gae(rewards, values, mask, self.gamma, self.critic_lambda, after)
        spread = float(masked_variance(returns, mask, self.total))
        if spread > 0:
            unexplained = float(masked_variance(returns - values, mask, self.total))
            rollout.metrics["value/explained_variance"] = 1 - unexplained / spread
        if self.whiten_advantages:
            advantages = masked_whiten(advantages, mask, self.total)
        rollout.advantages, rollout.returns = advantages, returns

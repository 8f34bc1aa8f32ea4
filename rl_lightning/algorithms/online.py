"""What algorithms that learn from their own samples share: scoring a rollout, the reference, the surrogate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from rl_lightning import functional
from rl_lightning.algorithms.correction import SamplerCorrection
from rl_lightning.algorithms.policy import Outputs, PolicyModule, vanishes_with_advantage
from rl_lightning.algorithms.settings import check_coefficients, clip_bounds, dual_clip_bound, warn_of_estimator
from rl_lightning.errors import UserError
from rl_lightning.functional import KLEstimator, RatioLevel
from rl_lightning.models import PolicyFiles, adapter_off
from rl_lightning.types import Microbatch, Rollout, Rows

#: `needs` of algorithms whose advantages come from a comparison of the responses to a prompt.
COMPARES_A_GROUP: Mapping[str, str] = {"advantages": "rl_lightning.callbacks.GroupNormalize"}


class OnlineModule(PolicyModule):
    """A policy that learns from rollouts of itself: J = surrogate(ρ, A) − β · divergence. A new algorithm overrides `surrogate`.

    Args:
        kl_coef: weight β ≥ 0 of the divergence from the reference. At 0 no reference is loaded.
        kl_in: where the divergence acts: in the `loss`, with a gradient, or in the `reward`, as a number.
        kl_estimator: how it is estimated; see `rl_lightning.functional.kl_penalty` for what each one's gradient is. If
            null, `k3` in the loss, which is the notebook's, and `k1` in the reward, where it is exact. In the loss
            `rho_k3` follows the divergence itself, on and off policy.
        reference: the frozen policy π_ref that the divergence is measured from; by default the policy as it began, which
            with `lora` is the policy itself with its adapter off.
        entropy_coef: weight ≥ 0 of the entropy of the token distributions, which is maximised too.
        sampler_correction: importance weights for a generator that samples a copy of the policy, such as vLLM; with one that
            samples the policy itself there is nothing to correct.
        ratio_level: whose ratio ρ is: the `token`'s; the whole response's (`sequence`); or the geometric mean of its tokens'
            (`sequence_mean`). See `rl_lightning.functional.probability_ratio`.
        **policy_options: policy, load, optimizer, reduction, lora: see `ObjectiveModule`.
    """

    learns_from = "rollouts"

    def __init__(
        self,
        kl_coef: float = 0.0,
        kl_in: Literal["loss", "reward"] = "loss",
        kl_estimator: KLEstimator | None = None,
        reference: str | None = None,
        entropy_coef: float = 0.0,
        sampler_correction: SamplerCorrection | None = None,
        ratio_level: RatioLevel = "token",
        **policy_options: Any,
    ) -> None:
        super().__init__(**policy_options)
        check_coefficients(kl_coef, entropy_coef, reference)
        self.kl_coef = kl_coef
        self.kl_in = kl_in
        self.kl_estimator: KLEstimator = kl_estimator or ("k3" if kl_in == "loss" else "k1")
        self.entropy_coef = entropy_coef
        self.sampler_correction = sampler_correction or SamplerCorrection()
        self.ratio_level: RatioLevel = ratio_level
        if kl_coef:
            warn_of_estimator(self.kl_estimator, kl_in)
        self.reference_files = PolicyFiles(reference, self.policy_files.options) if reference else self.policy_files
        self.reference: nn.Module | None = None

    @property
    def estimator(self) -> str:
        """How the divergence from the reference is estimated, for the run card."""
        if not self.kl_coef:
            return "none (no reference loaded)"
        return f"{self.kl_estimator} in the {self.kl_in}, kl_coef {self.kl_coef:g}"

    def configure_model(self) -> None:
        """Load the policy, and the reference if the objective has a use for it and the policy does not hold it."""
        super().configure_model()
        within = self.lora is not None and self.reference_files is self.policy_files
        if not self.kl_coef or within or self.reference is not None or self._is_evaluating():
            return
        own, other = (files.config.get_text_config().vocab_size for files in (self.policy_files, self.reference_files))
        if own != other:
            raise UserError(
                f"reference {self.reference_files.policy!r} has a vocabulary of {other} tokens and the policy one of {own}: their "
                "log-probabilities cannot be compared; choose a reference with the policy's tokenizer"
            )
        self.reference = self.placed(self.loaded(partial(self.reference_files.load, trainable=False)))

    def _is_evaluating(self) -> bool:
        """Tell whether a trainer runs this without training it; then nobody asks for a divergence."""
        return self._trainer is not None and self._trainer.state.fn != TrainerFn.FITTING

    def score(self, batch: Microbatch, single_update: bool) -> dict[str, Tensor]:
        """Return what must be known of a rollout before the policy changes.

        Args:
            batch: rows that the first epoch will train on in this very composition, so that the same kernels run on
                the same shapes and the first ratio is 1 to the last bit.
            single_update: the rollout serves one optimizer step; then old log-probabilities are the current ones and
                need no pass of their own.

        Returns:
            Names of `Rollout` fields → (B, R) or (B,).
        """
        penalised = self.kl_coef > 0 and self.kl_in == "reward"
        scores = self.score_policy(batch, old_logprobs=not single_update or penalised)
        if self.kl_coef:
            scores["ref_logprobs"] = self.reference_logprobs(batch)
        return scores

    def reference_logprobs(self, batch: Rows) -> Tensor:
        """Return log π_ref of the response tokens, (B, R) in nats, without gradient."""
        with torch.no_grad():
            if self.reference is not None:
                return self.logprobs(batch, self.reference)
            assert self.lora is not None
            with adapter_off(self.policy):
                return self.logprobs(batch)

    def score_policy(self, batch: Microbatch, old_logprobs: bool) -> dict[str, Tensor]:
        """Return what is read off the policy itself: its log-probabilities, if they are wanted."""
        return {"old_logprobs": self.logprobs(batch)} if old_logprobs else {}

    def on_rollout_scored(self, rollout: Rollout) -> None:
        """Fill in what the divergence costs the tokens of a rollout that `score` has looked at, and log it, if it acts in the
        reward. The rewards stay as they are: see `Rollout.penalised_rewards` and `token_rewards`."""
        rollout.kl_penalties = self.kl_penalties(rollout)
        if rollout.kl_penalties is None:
            return
        assert rollout.old_logprobs is not None and rollout.ref_logprobs is not None
        for name, estimate in (("kl/k1", functional.kl_k1), ("kl/k3", functional.kl_k3)):
            values = estimate(rollout.old_logprobs, rollout.ref_logprobs)
            rollout.metrics[name] = float(functional.masked_mean(values, rollout.response_mask, self.total))

    def token_rewards(self, rollout: Rollout) -> Tensor:
        """Return r_t = r(x, y≤t) − β KL_t, (B, R), 0 outside the response, of a rollout that `on_rollout_scored` has seen: what an
        environment gave a turn at the turn's last token, the rest of the reward at the response's."""
        mask, rewards = rollout.response_mask, rollout.token_rewards
        if rewards is None:
            # A failed reward is NaN; its row has no token that counts.
            last = mask & (mask.flip(1).cumsum(1).flip(1) == 1)
            turns, rest = rollout.turn_rewards, rollout.rewards
            if turns is not None:
                rest = rest - turns.sum(1).to(rest)
            rewards = torch.where(last, rest.unsqueeze(1), 0)
            rewards = rewards if turns is None else rewards + turns.to(rewards)
        return torch.where(mask, rollout.less_divergence(rewards), 0)

    def kl_penalties(self, rollout: Rollout) -> Tensor | None:
        """Return β times the estimated divergence of the policy that sampled, (B, R), 0 outside the response; None if it
        does not act in the reward."""
        if not self.kl_coef or self.kl_in != "reward":
            return None
        assert rollout.old_logprobs is not None and rollout.ref_logprobs is not None
        old, ref = rollout.old_logprobs, rollout.ref_logprobs
        estimate = functional.kl_penalty(old, ref, self.kl_estimator, torch.zeros_like(old))
        return torch.where(rollout.response_mask, self.kl_coef * estimate, 0)

    @property
    def learns_from_zero_advantages(self) -> bool:
        """Whether a response may have a gradient though all of its advantages are 0: that of the divergence, say."""
        return super().learns_from_zero_advantages or (self.kl_coef != 0 and self.kl_in == "loss")

    def observed(self, batch: Microbatch, outputs: Outputs) -> dict[str, Tensor]:
        """Return what is logged of the tokens of a microbatch, (B, R) each: how far the policy is from the one that sampled, from
        the sampler and from the reference. What an algorithm clips, masks or weighs it adds itself."""
        logprobs, seen = outputs.logprobs, super().observed(batch, outputs)
        old = old_logprobs(batch, logprobs)
        ratio = self.ratio(batch, logprobs)
        seen |= {
            "policy/ratio_mean": ratio,
            "policy/ratio_square": ratio.square(),
            "policy/approx_kl": functional.kl_k3(old, logprobs),
        }
        if batch.rollout_logprobs is not None:
            seen |= self.sampler_correction.weights(old, batch.rollout_logprobs, batch.response_mask)[1]
        if self.kl_coef and self.kl_in == "loss":
            ref = batch.ref_logprobs
            assert ref is not None
            seen |= {"kl/k3": functional.kl_k3(logprobs, ref), "kl/k1": functional.kl_k1(logprobs, ref)}
        return seen

    def corrected(self, batch: Microbatch, logprobs: Tensor) -> Microbatch:
        """Return a microbatch with its advantages weighed by how much likelier the trainer's policy found each token than the
        sampler that drew it; the same batch where the two are one."""
        if batch.rollout_logprobs is None or batch.advantages is None or self.sampler_correction.kind == "none":
            return batch
        policy = old_logprobs(batch, logprobs)
        weights, _ = self.sampler_correction.weights(policy, batch.rollout_logprobs, batch.response_mask)
        # An unbounded weight may be infinite, and 0 · ∞ is no number.
        weighed = torch.where(batch.advantages == 0, 0, batch.advantages * weights.to(batch.advantages))
        return replace(batch, advantages=weighed)

    def ratio(self, batch: Microbatch, logprobs: Tensor) -> Tensor:
        """Return ρ = π_θ/π_old at every response token, (B, R), of what `ratio_level` says."""
        old = old_logprobs(batch, logprobs)
        return functional.probability_ratio(logprobs, old, batch.response_mask, self.ratio_level)

    @vanishes_with_advantage
    def objective(self, batch: Microbatch, logprobs: Tensor) -> Tensor:
        """Return the surrogate, less the divergence where it acts in the loss, (B, R)."""
        surrogate = self.a_token("surrogate", self.surrogate(batch, logprobs), batch)
        return surrogate - self.a_number("divergence", self.divergence(batch, logprobs), batch)

    def surrogate(self, batch: Microbatch, logprobs: Tensor) -> Tensor:
        """Return what the algorithm makes of ρ and A at every response token, (B, R): clipped, weighted or soft, say."""
        raise TypeError(f"{type(self).__name__} must define surrogate(batch, logprobs)")

    def divergence(self, batch: Microbatch, logprobs: Tensor) -> Tensor | float:
        """Return β times the estimated divergence from the reference of every response token, (B, R) in nats; 0 if it does not act
        in the loss."""
        if not self.kl_coef or self.kl_in != "loss":
            return 0.0
        assert batch.ref_logprobs is not None
        log_ratio = logprobs - old_logprobs(batch, logprobs)
        return self.kl_coef * functional.kl_penalty(logprobs, batch.ref_logprobs, self.kl_estimator, log_ratio)

    def train(self, mode: bool = True) -> OnlineModule:
        """Set the mode of everything but the reference, which moves and shards with the module but never changes."""
        super().train(mode)
        if self.reference is not None:
            self.reference.eval()
        return self


class ClippedModule(OnlineModule):
    """A policy that learns nothing more from a token once its ratio has left a trust region.

    The surrogate is S_ε(ρ, A) = min(ρ A, clip(ρ, 1−ε_low, 1+ε_high) A), and its gradient ρ A 1{clip inactive} ∇ log π_θ.

    Source: PPO (arXiv 1707.06347) Eq. 7; the second clip is dual-clip PPO's (1912.09729).

    Args:
        clip_low: ε below 1, in [0, 1].
        clip_high: ε above 1; the same as `clip_low` if null.
        dual_clip: c > 1: where A < 0 the surrogate is at least c A, so that a token with ρ > c has no gradient; off if null.
        **online_options: see `OnlineModule`.
    """

    def __init__(
        self,
        clip_low: float = 0.2,
        clip_high: float | None = None,
        dual_clip: float | None = None,
        **online_options: Any,
    ) -> None:
        super().__init__(**online_options)
        self.clip_low, self.clip_high = clip_bounds(clip_low, clip_high)
        self.dual_clip = dual_clip_bound(dual_clip)

    @vanishes_with_advantage
    def surrogate(self, batch: Microbatch, logprobs: Tensor) -> Tensor:
        """Return S_ε(ρ, A) of every response token, (B, R)."""
        assert batch.advantages is not None
        low, high, dual = self.clip_low, self.clip_high, self.dual_clip
        return functional.clipped_surrogate(self.ratio(batch, logprobs), batch.advantages, low, high, dual)

    def observed(self, batch: Microbatch, outputs: Outputs) -> dict[str, Tensor]:
        """Return what is logged of the tokens of a microbatch, (B, R) each: among it where a side of the clip takes the gradient."""
        assert batch.advantages is not None
        ratio = self.ratio(batch, outputs.logprobs)
        return super().observed(batch, outputs) | {
            "policy/clip_fraction_high": ((batch.advantages > 0) & (ratio > 1 + self.clip_high)).float(),
            "policy/clip_fraction_low": ((batch.advantages < 0) & (ratio < 1 - self.clip_low)).float(),
        }


def old_logprobs(batch: Microbatch, logprobs: Tensor) -> Tensor:
    """Return log π_old; where the rollout serves a single update these are the current ones, without gradient."""
    return logprobs.detach() if batch.old_logprobs is None else batch.old_logprobs

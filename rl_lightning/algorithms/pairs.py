"""What algorithms that learn from preference pairs share: one number a response, what is logged of a pair, and held-out pairs."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from rl_lightning.algorithms.metrics import preference_metrics
from rl_lightning.algorithms.policy import Outputs, PolicyModule
from rl_lightning.errors import UserError
from rl_lightning.models import PolicyFiles
from rl_lightning.types import Microbatch, PreferenceBatch, Rollout, Rows


class PairModule(PolicyModule):
    """A policy that learns from pairs: J = of_pair(m⁺, m⁻) + α/|y⁺| log π_θ(y⁺). A new algorithm overrides `of_pair`.

    m± is the mean, or the sum, of log π_θ over the tokens of y±; a subclass with a reference measures it from there.

    Args:
        length_normalize: m is the mean over a response's tokens, not the sum.
        sft_coef: α ≥ 0, weight of the mean log-likelihood of the chosen response, which is imitated besides.
        beyond_shorter: weight in [0, 1], in m, of the tokens of the longer response beyond the length of the shorter one; at 1
            all tokens are worth the same.
        **policy_options: policy, load, optimizer, reduction, lora: see `ObjectiveModule`.
    """

    learns_from = "preferences"
    evaluates_on: ClassVar[tuple[str, ...]] = ("preferences", "responses")
    #: What metrics of the algorithm begin with.
    shown_as: ClassVar[str] = "pairs"

    def __init__(
        self,
        length_normalize: bool = True,
        sft_coef: float = 0.0,
        beyond_shorter: float = 1.0,
        **policy_options: Any,
    ) -> None:
        super().__init__(**policy_options)
        self.require_mean_over_pairs()
        if sft_coef < 0:
            raise UserError(f"sft_coef must be at least 0, not {sft_coef}: below it what was chosen is unlearnt")
        if not 0 <= beyond_shorter <= 1:
            raise UserError(
                f"beyond_shorter must lie in [0, 1], not {beyond_shorter}: it is a share of a token's weight"
            )
        #: What a nat of m is worth: implicit rewards, margins and held-out scores are m times this.
        self.reward_scale = 1.0
        self.length_normalize = length_normalize
        self.sft_coef = sft_coef
        self.beyond_shorter = beyond_shorter

    def of_pair(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Return J of each pair, (B/2,), to be maximised, from m⁺ and m⁻, (B/2,) nats each."""
        raise TypeError(f"{type(self).__name__} must define of_pair(chosen, rejected)")

    def objective(self, batch: Microbatch, logprobs: Tensor) -> Tensor:
        """Return J of a pair on every token of both of its responses, (B, R)."""
        if not isinstance(batch, PreferenceBatch):
            raise UserError(f"{type(self).__name__} needs preference pairs: set data.class_path to RewardDataModule")
        gains = self.gains(logprobs, batch)
        objective = self.of_pair(batch.chosen(gains), batch.rejected(gains))
        if self.sft_coef:
            likelihood = torch.where(batch.response_mask, logprobs, 0).sum(1) / batch.response_mask.sum(1).clamp(min=1)
            objective = objective + self.sft_coef * batch.chosen(likelihood)
        return batch.per_token(objective)

    def gains(self, logprobs: Tensor, batch: Microbatch) -> Tensor:
        """Return m of each response, (B,) nats."""
        return self.per_response(logprobs, batch)

    def per_response(self, logprobs: Tensor, batch: Microbatch) -> Tensor:
        """Return the sum of each response's log-probabilities, or their mean, (B,) nats."""
        logprobs, count = torch.where(batch.response_mask, logprobs, 0), batch.response_mask.sum(1)
        if self.beyond_shorter != 1:
            shorter = count.view(-1, 2).amin(1).repeat_interleave(2).unsqueeze(1)
            inside = (batch.response_mask.cumsum(1) <= shorter) & batch.response_mask
            weights = torch.where(inside, 1.0, self.beyond_shorter * batch.response_mask).to(logprobs)
            logprobs, count = logprobs * weights, weights.sum(1)
        return logprobs.sum(1) / count.clamp(min=1) if self.length_normalize else logprobs.sum(1)

    def observed(self, batch: Microbatch, outputs: Outputs) -> dict[str, Tensor]:
        """Return what is logged of the pairs, besides the entropy of the tokens."""
        return super().observed(batch, outputs) | self.judged(batch, outputs)

    def judged(self, batch: Microbatch, outputs: Outputs) -> dict[str, Tensor]:
        """Return what is logged of the pairs, (B/2,) each."""
        assert isinstance(batch, PreferenceBatch)
        measured, gains = self.per_response(outputs.logprobs, batch), self.gains(outputs.logprobs, batch)
        chosen, rejected = batch.chosen(gains), batch.rejected(gains)
        difference = self.reward_scale * (chosen - rejected)
        return {
            f"{self.shown_as}/margin": difference,
            f"{self.shown_as}/accuracy": (difference > 0).float(),
            f"{self.shown_as}/chosen_reward": self.reward_scale * chosen,
            f"{self.shown_as}/rejected_reward": self.reward_scale * rejected,
            "policy/chosen_logprob": batch.chosen(measured),
            "policy/rejected_logprob": batch.rejected(measured),
        }

    def evaluation_step(self, batch: Rows, stage: str) -> None:
        """Add some held-out pairs to accuracy, margin and loss, or some sampled answers to what `PolicyModule` measures.

        A pair's scores are its implicit rewards, m⁺ and m⁻ times `reward_scale`.
        """
        if isinstance(batch, Rollout):
            super().evaluation_step(batch, stage)
            return
        assert isinstance(batch, PreferenceBatch)
        logprobs = self.logprobs(batch)
        objective = batch.chosen(self.objective(batch, logprobs))[:, 0]
        scores = self.reward_scale * self.gains(logprobs, batch)
        self.evaluation_metrics(stage, preference_metrics, "preferences").update(
            chosen=batch.chosen(scores), rejected=batch.rejected(scores), objective=objective
        )


class ReferencedPairModule(PairModule):
    """A policy that learns from pairs how to differ from a frozen reference: m is of log π_θ/π_ref.

    Args:
        reference: the frozen policy π_ref; by default the policy as it began. Its log-probabilities come with the pairs, so
            it is not in memory while training.
        **pair_options: length_normalize, sft_coef, beyond_shorter, policy, load, optimizer, reduction, lora: see `PairModule`
            and `ObjectiveModule`.
    """

    wants_reference = True

    def __init__(self, reference: str | None = None, **pair_options: Any) -> None:
        super().__init__(**pair_options)
        self.reference_files = PolicyFiles(reference, self.policy_files.options) if reference else self.policy_files

    def gains(self, logprobs: Tensor, batch: Microbatch) -> Tensor:
        """Return m of each response, (B,) nats: how much likelier it has become than it is to the reference."""
        if batch.ref_logprobs is None:
            raise UserError(
                f"{type(self).__name__} needs preference pairs with log-probabilities of the reference: set data.class_path to "
                "RewardDataModule"
            )
        return self.per_response(logprobs, batch) - self.per_response(batch.ref_logprobs, batch)

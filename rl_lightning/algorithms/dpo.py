"""Direct preference optimization."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rl_lightning.algorithms.metrics import preference_metrics
from rl_lightning.algorithms.policy import Outputs, PolicyModule
from rl_lightning.errors import UserError
from rl_lightning.functional import dpo_objective
from rl_lightning.models import PolicyFiles
from rl_lightning.types import Microbatch, PreferenceBatch, Rollout, Rows

#: β that is customary for means over tokens, and for sums.
_MEAN_BETA, _SUM_BETA = 5.0, 0.1


class DPO(PolicyModule):
    """Make the chosen response of a pair likelier than the rejected one, measured from a reference; no reward model.

    J = E log σ( β m⁺ − β m⁻ ),   m± = 1/|y±| Σ_t log π_θ(y±_t | x, y±_<t)/π_ref(y±_t | x, y±_<t)

    over prompts x and pairs y⁺, y⁻ ~ π_sft. With ς = σ(β m⁻ − β m⁺), one number a pair, the gradient is

    ∇J = E βς [ 1/|y⁺| Σ_t ∇ log π_θ(y⁺_t | ·) − 1/|y⁻| Σ_t ∇ log π_θ(y⁻_t | ·) ]

    At θ = ref J = −log 2 and ς = 1/2.

    Source: the notebook; DeepSeekMath (arXiv 2402.03300) A.1.4; Rafailov et al. (2305.18290) Eq. 7. Departures:

    - The notebook writes ς_t, but ς is the same for every token: the sum inside re-binds t. DeepSeekMath's Eq. 14 prints
      no β before the gradient and no mean inside σ; without β the gradient is wrong by the factor 1/β.
    - Rafailov et al. take sums over tokens, `length_normalize: false`. A mean is |y| times smaller, so β is another
      number: 0.1 is theirs for sums, 5 that of Tülu 3 (2411.15124) for means.
    - `label_smoothing` ε is in neither: (1 − ε) log σ(z) + ε log σ(−z), for pairs of which a share ε is the wrong way round.

    Args:
        reference: the frozen policy π_ref; by default the policy as it began. Its log-probabilities come with the pairs, so
            it is not in memory while training.
        beta: β > 0, how dear it is to move away from the reference; if null, 5 for means and 0.1 for sums.
        length_normalize: m is the mean over a response's tokens, not the sum.
        label_smoothing: ε in [0, 0.5).
        **policy_options: policy, load, optimizer, reduction, lora: see `ObjectiveModule`.
    """

    formula = "J = E log σ( β/|y⁺| Σ_t log π_θ/π_ref(y⁺_t) − β/|y⁻| Σ_t log π_θ/π_ref(y⁻_t) )"

    learns_from = "preferences"
    evaluates_on = ("preferences", "responses")
    wants_reference = True

    def __init__(
        self,
        reference: str | None = None,
        beta: float | None = None,
        length_normalize: bool = True,
        label_smoothing: float = 0.0,
        **policy_options: Any,
    ) -> None:
        super().__init__(**policy_options)
        self.require_mean_over_pairs()
        if beta is not None and beta <= 0:
            raise UserError(f"beta must be above 0, not {beta}: at 0 nothing is learnt, below it the wrong response is")
        if not 0 <= label_smoothing < 0.5:
            raise UserError(
                f"label_smoothing must lie in [0, 0.5), not {label_smoothing}: it is the share of wrong labels"
            )
        self.length_normalize = length_normalize
        self.beta = (_MEAN_BETA if length_normalize else _SUM_BETA) if beta is None else beta
        self.label_smoothing = label_smoothing
        self.reference_files = PolicyFiles(reference, self.policy_files.options) if reference else self.policy_files

    def objective(self, batch: Microbatch, logprobs: Tensor) -> Tensor:
        """Return log σ(β m⁺ − β m⁻) on every token of both responses of a pair."""
        if not isinstance(batch, PreferenceBatch):
            raise UserError(
                "DPO needs preference pairs with log-probabilities of the reference: set data.class_path to RewardDataModule"
            )
        gains = self._gains(logprobs, batch)
        chosen, rejected = batch.chosen(gains), batch.rejected(gains)
        return batch.per_token(dpo_objective(chosen, rejected, self.beta, self.label_smoothing))

    def observed(self, batch: Microbatch, outputs: Outputs) -> dict[str, Tensor]:
        """Return what is logged of the pairs, (B/2,), besides the entropy of the tokens."""
        assert isinstance(batch, PreferenceBatch)
        measured, gains = self._per_response(outputs.logprobs, batch), self._gains(outputs.logprobs, batch)
        chosen, rejected = batch.chosen(gains), batch.rejected(gains)
        difference = self.beta * (chosen - rejected)
        return super().observed(batch, outputs) | {
            "dpo/margin": difference,
            "dpo/accuracy": (difference > 0).float(),
            "dpo/chosen_reward": self.beta * chosen,
            "dpo/rejected_reward": self.beta * rejected,
            "policy/chosen_logprob": batch.chosen(measured),
            "policy/rejected_logprob": batch.rejected(measured),
        }

    def evaluation_step(self, batch: Rows, stage: str) -> None:
        """Add some held-out pairs to accuracy, margin and loss, or some sampled answers to what `PolicyModule` measures.

        A pair's scores are its implicit rewards, β m⁺ and β m⁻.
        """
        if isinstance(batch, Rollout):
            super().evaluation_step(batch, stage)
            return
        assert isinstance(batch, PreferenceBatch)
        logprobs = self.logprobs(batch)
        objective = batch.chosen(self.objective(batch, logprobs))[:, 0]
        scores = self.beta * self._gains(logprobs, batch)
        self.evaluation_metrics(stage, preference_metrics, "preferences").update(
            chosen=batch.chosen(scores), rejected=batch.rejected(scores), objective=objective
        )

    def _gains(self, logprobs: Tensor, batch: Microbatch) -> Tensor:
        """Return m of each response, (B,) nats: how much likelier it has become than it is to the reference."""
        if batch.ref_logprobs is None:
            raise UserError("DPO needs preference pairs with log-probabilities of the reference: use RewardDataModule")
        return self._per_response(logprobs, batch) - self._per_response(batch.ref_logprobs, batch)

    def _per_response(self, logprobs: Tensor, batch: Microbatch) -> Tensor:
        """Return the sum of each response's log-probabilities, or their mean, (B,) nats."""
        total = torch.where(batch.response_mask, logprobs, 0).sum(1)
        return total / batch.response_mask.sum(1).clamp(min=1) if self.length_normalize else total

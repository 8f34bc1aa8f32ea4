"""Kahneman–Tversky optimization."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from rl_lightning.algorithms.pairs import ReferencedPairModule
from rl_lightning.algorithms.policy import Outputs
from rl_lightning.errors import UserError
from rl_lightning.types import Microbatch, Rollout

log = logging.getLogger(__name__)


class KTO(ReferencedPairModule):
    """Judge each response alone, as a gain or a loss from where the policy stands: a sure one, either way, teaches little.

    J = E ½ [ λ⁺ σ( β (m⁺ − z₀) ) + λ⁻ σ( β (z₀ − m⁻) ) ],   m± = Σ_t log π_θ(y±_t | x, y±_<t)/π_ref(y±_t | x, y±_<t)

    The gradient is E ½ [ λ⁺ β σ(u)σ(−u) ∇m⁺ − λ⁻ β σ(v)σ(−v) ∇m⁻ ] with u = β (m⁺ − z₀) and v = β (z₀ − m⁻): z₀ is a number.

    Source: KTO (arXiv 2402.01306) Eq. 7. Departures:

    - z₀ is max(0, mean of m over all responses of the optimizer step before), 0 in the first step; it is logged as `kto/z0`, and a
      checkpoint has it. The paper takes mismatched pairs, a prompt with the response to another one, in the microbatch at hand,
      so that z₀ depends on how a step is cut into microbatches and ranks; this one does not. It is 0 while the policy finds the
      data less likely than the reference does, which is so where the reference has sampled them.
    - Chosen and rejected responses of pairs are the paper's desirable and undesirable ones, as many of each. `LabelledKTO` has
      responses with a label of their own.

    Args:
        beta: β > 0.
        desirable: λ⁺ > 0.
        undesirable: λ⁻ > 0.
        **pair_options: reference, sft_coef, beyond_shorter, policy, load, optimizer, reduction, lora: see
            `ReferencedPairModule`, `PairModule` and `ObjectiveModule`.
    """

    formula = "J = E ½ [ λ⁺ σ(β(m⁺ − z₀)) + λ⁻ σ(β(z₀ − m⁻)) ],  m± = Σ_t log π_θ/π_ref(y±_t)"
    shown_as = "kto"

    z0: Tensor

    def __init__(
        self, beta: float = 0.1, desirable: float = 1.0, undesirable: float = 1.0, **pair_options: Any
    ) -> None:
        super().__init__(length_normalize=False, **pair_options)
        if min(beta, desirable, undesirable) <= 0:
            raise UserError("beta, desirable and undesirable must be above 0: else nothing, or half, is learnt")
        self.beta, self.desirable, self.undesirable, self.reward_scale = beta, desirable, undesirable, beta
        self.register_buffer("z0", torch.zeros(()))

    def of_pair(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Return the mean of λ⁺ σ(β (m⁺ − z₀)) and λ⁻ σ(β (z₀ − m⁻)), (B/2,)."""
        gain, loss = (self.beta * (chosen - self.z0)).sigmoid(), (self.beta * (self.z0 - rejected)).sigmoid()
        return (self.desirable * gain + self.undesirable * loss) / 2

    def mean_reward(self, metrics: Mapping[str, float]) -> float:
        """Return β times the mean of m over all responses of a step."""
        return (metrics["kto/chosen_reward"] + metrics["kto/rejected_reward"]) / 2

    def on_step_observed(self, metrics: Mapping[str, float]) -> None:
        """Log this step's z₀, and take the next one's from what is known of this."""
        self.log("kto/z0", float(self.z0))
        self.z0.fill_(max(0.0, self.mean_reward(metrics)) / self.beta)


class LabelledKTO(KTO):
    """KTO of single responses, each with a label of its own; there are no pairs, and prompts may have one response.

    J = E λ(y) σ( ± β (m(y) − z₀) ),   m(y) = Σ_t log π_θ(y_t | x, y_<t)/π_ref(y_t | x, y_<t)

    with + and λ⁺ for a desirable response, − and λ⁻ for an undesirable one. Desirable is one whose label, or whose first reward, reaches
    `data.correct_threshold`. On the responses of pairs this is `KTO`. Where there are n⁺ and n⁻ of them, the paper (section 4.2) wants
    λ⁺n⁺ : λ⁻n⁻ between 1 and 4/3; a run outside that is told which λ would do.

    Source: see `KTO`, also for z₀.

    Args:
        **kto_options: beta, desirable, undesirable, reference, policy, load, optimizer, reduction, lora: see `KTO`.
    """

    formula = "J = E λ± σ(±β(m − z₀)),  m = Σ_t log π_θ/π_ref(y_t)"
    learns_from = "samples"
    evaluates_on: ClassVar[tuple[str, ...]] = ("responses",)
    fills = ("advantages",)

    def __init__(self, **kto_options: Any) -> None:
        super().__init__(**kto_options)
        refuse_what_compares(self)

    def on_rollout_scored(self, rollout: Rollout) -> None:
        """Give desirable responses the advantage 1, undesirable ones −1."""
        sign = torch.where(rollout.correct, 1.0, -1.0).unsqueeze(1)
        rollout.advantages = torch.where(rollout.response_mask, sign, 0.0)
        say_what_weighs_more(rollout.correct[rollout.scored], self.desirable, self.undesirable)

    def objective(self, batch: Microbatch, logprobs: Tensor) -> Tensor:
        """Return J of a response on every token of it, (B, R)."""
        sign, gains = signs(batch), self.gains(logprobs, batch)
        worth = torch.where(sign > 0, gains.new_tensor(self.desirable), gains.new_tensor(self.undesirable))
        return (worth * (self.beta * sign * (gains - self.z0)).sigmoid()).unsqueeze(1).expand_as(batch.response_mask)

    def judged(self, batch: Microbatch, outputs: Outputs) -> dict[str, Tensor]:
        """Return the implicit reward of each response, (B,), and the same by label, NaN for the others."""
        return rewards_by_label(self.beta * self.gains(outputs.logprobs, batch), signs(batch))

    def mean_reward(self, metrics: Mapping[str, float]) -> float:
        """Return β times the mean of m over all responses of a step."""
        return metrics["kto/reward"]


def signs(batch: Microbatch) -> Tensor:
    """Return 1 for each desirable response and −1 for each undesirable one, (B,); 0 for one that does not count."""
    if batch.advantages is None:
        raise UserError(
            "LabelledKTO learns from responses with labels or rewards: set data.class_path to RewardDataModule"
        )
    return batch.advantages.sum(1).sign()


def rewards_by_label(rewards: Tensor, sign: Tensor) -> dict[str, Tensor]:
    """Return implicit rewards, (B,), by the names that they are logged under: all, and those of each label with NaN for the others."""
    nothing = rewards.new_tensor(torch.nan)
    return {
        "kto/reward": rewards,
        "kto/desirable_reward": torch.where(sign > 0, rewards, nothing),
        "kto/undesirable_reward": torch.where(sign < 0, rewards, nothing),
    }


def refuse_what_compares(module: KTO) -> None:
    """Refuse options that only pairs have.

    Raises:
        UserError: naming the first.
    """
    for name, idle in (("beyond_shorter", 1.0), ("sft_coef", 0.0)):
        if getattr(module, name) != idle:
            raise UserError(f"{name} is of pairs, and LabelledKTO has single responses: leave it out")


def say_what_weighs_more(desirable: Tensor, up: float, down: float) -> None:
    """Log how desirable and undesirable responses weigh, where the paper would have it otherwise.

    Args:
        desirable: (B,) bool.
        up, down: λ⁺ and λ⁻.
    """
    right, wrong = int(desirable.sum()), int((~desirable).sum())
    share = up * right / (down * wrong) if wrong else math.inf
    if not 1 <= share <= 4 / 3:
        other = (
            "there is but one kind, and nothing to tell apart" if not right or not wrong
            else f"set desirable to {down * wrong / right:.3g}" if share < 1
            else f"set undesirable to {up * right / wrong:.3g}"
        )  # fmt: skip
        log.warning(
            "%d desirable and %d undesirable responses weigh %.3g to 1, and the paper has 1 to 4/3: %s",
            right, wrong, share, other,
        )  # fmt: skip

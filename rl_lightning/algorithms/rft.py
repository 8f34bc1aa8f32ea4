"""Rejection-sampling fine-tuning."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rl_lightning.algorithms.policy import PolicyModule, vanishes_with_advantage
from rl_lightning.errors import UserError
from rl_lightning.types import Microbatch


class RFT(PolicyModule):
    """Imitate those of a policy's own responses that are accepted.

    J = E_{x ~ P, y ~ π_sft} [ 𝕀(x, y) · 1/|y| Σ_t log π_θ(y_t | x, y_<t) ]

    with 𝕀 = 1 for an accepted response and 0 otherwise, a number that a callback supplies as the advantage. The gradient is

    ∇J = E [ 𝕀(x, y) · 1/|y| Σ_t ∇ log π_θ(y_t | x, y_<t) ],

    so every token of an accepted response has coefficient 1, and every other 0. Online, y ~ π_θ: that is GRPO's gradient
    with A = 𝕀, without a baseline: nothing pushes rejected responses away.

    Source: the notebook, which writes 𝕀(y) where the prompt matters too; DeepSeekMath (arXiv 2402.03300) A.1.2 and, online,
    A.1.3; Yuan et al. (2308.01825). Departures: the literal mean is over *all* responses, so the rate of acceptance scales
    the step; see `RejectionSampling` for the mean over accepted ones, for Yuan et al.'s deduplication, and for a cap a
    prompt, without which easy prompts dominate. They fine-tune the pretrained model on samples of the fine-tuned one, and
    mix the demonstrations in: here `policy` and `data.sampler` may differ, and there is `data.mix_demonstrations`.

    Args:
        online: learn from rollouts of the present policy (`RolloutDataModule`) instead of samples of a frozen one
            (`RewardDataModule`).
        **policy_options: policy, load, optimizer, reduction, lora: see `ObjectiveModule`.
    """

    formula = "J = E[ 𝕀(x, y) · 1/|y| Σ_t log π_θ(y_t | x, y_<t) ]"

    needs = {"advantages": "rl_lightning.callbacks.RejectionSampling"}  # noqa: RUF012

    def __init__(self, online: bool = False, **policy_options: Any) -> None:
        super().__init__(**policy_options)
        self.learns_from = "rollouts" if online else "samples"

    @vanishes_with_advantage
    def objective(self, batch: Microbatch, logprobs: Tensor) -> Tensor:
        """Return 𝕀 log π_θ(y_t | x, y_<t)."""
        if batch.advantages is None:
            raise UserError(
                "RFT needs to know which responses are accepted: add RejectionSampling to the Trainer's callbacks"
            )
        return batch.advantages.to(logprobs.dtype) * logprobs

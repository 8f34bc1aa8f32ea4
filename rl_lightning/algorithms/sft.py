"""Supervised fine-tuning."""

from __future__ import annotations

from torch import Tensor

from rl_lightning.algorithms.metrics import demonstration_metrics
from rl_lightning.algorithms.policy import PolicyModule
from rl_lightning.models import read_responses
from rl_lightning.types import Microbatch, Rollout, Rows


class SFT(PolicyModule):
    """Imitate demonstrations.

    J = E_{x,y ~ P_sft} [ 1/|y| Σ_t log π_θ(y_t | x, y_<t) ]

    The gradient is that of the mean log-likelihood: every token has coefficient 1. Prompt tokens are not trained on.

    Args:
        policy, load, optimizer, lora: see `PolicyModule`.
        reduction: `seq_mean` is the formula above (DeepSeekMath, arXiv 2402.03300, A.1.1); `token_mean` is the usual
            cross-entropy over the tokens of the batch, in which long answers weigh more.
    """

    formula = "J = E[ 1/|y| Σ_t log π_θ(y_t | x, y_<t) ]"

    learns_from = "demonstrations"
    learns_from_rewards = False
    evaluates_on = ("demonstrations", "responses")

    def objective(self, batch: Microbatch, logprobs: Tensor) -> Tensor:
        """Return log π_θ(y_t | x, y_<t)."""
        return logprobs

    def evaluation_step(self, batch: Rows, stage: str) -> None:
        """Add some held-out demonstrations to loss and token accuracy, or some sampled answers to what `PolicyModule` measures."""
        if isinstance(batch, Rollout):
            super().evaluation_step(batch, stage)
            return
        logprobs, most_probable, _ = read_responses(self.policy, batch, entropy="top")
        self.evaluation_metrics(stage, demonstration_metrics, "demonstrations").update(
            batch.response_mask, logprobs=logprobs, most_probable=most_probable
        )

"""What a user may write: an objective of another shape than (B, R), and metrics that are tensors without a dimension."""

import torch

from rl_lightning.algorithms import GRPO
from rl_lightning.hooks import RolloutCallback


class OfResponses(GRPO):
    """Returns a number a response."""

    def objective(self, batch, logprobs):
        return super().objective(batch, logprobs).sum(1)


class Single(GRPO):
    """Returns the mean of a microbatch, as many a loss does."""

    def objective(self, batch, logprobs):
        return super().objective(batch, logprobs).mean()


class Adds(RolloutCallback):
    """Adds a metric of no dimension to a rollout."""

    def on_rollout_rewards(self, trainer, module, rollout):
        rollout.metrics["own/longest"] = rollout.lengths.max()
        rollout.metrics["own/share"] = torch.tensor(0.25)

"""Advantages that compare the responses to a prompt with each other, as in GRPO."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule, Trainer

from rl_lightning.errors import UserError
from rl_lightning.functional import group_normalize, masked_whiten
from rl_lightning.functional.advantages import AdvantageScale, Baseline
from rl_lightning.hooks import RolloutCallback
from rl_lightning.types import Rollout


class GroupNormalize(RolloutCallback):
    """Give every token of a response the advantage (r − mean) / (std + eps); mean and std are over the response's group.

    r is the reward, minus the divergence if that acts in the reward. See `rl_lightning.functional.group_normalize`.

    Args:
        scale: divide by the group's standard deviation (`std`, GRPO), by that of all rewards (`batch`), by the group's mean
            reward (`mean`, MaxRL, for rewards of at least 0), or by nothing (`none`, Dr.GRPO).
        eps: added to what is divided by, in units of reward.
        ddof: divisor n − ddof of the variance: 1 for the unbiased one, 0 for the population's.
        baseline: what is taken off: the group's `mean`; the mean of the `others` in it (RLOO); or its mean weighted by `length`
            (OPO).
        whiten: shift and scale the result to mean 0 and deviation 1 over the tokens of the rollout. What has no spread in its
            group is then worth what the shift is.
    """

    supplies = ("advantages",)

    def __init__(
        self,
        scale: AdvantageScale = "std",
        eps: float = 1e-6,
        ddof: int = 1,
        baseline: Baseline = "mean",
        whiten: bool = False,
    ) -> None:
        self.scale: AdvantageScale = scale
        self.eps = eps
        self.ddof = ddof
        self.baseline: Baseline = baseline
        self.whiten = whiten

    def check_settings(self, trainer: Trainer) -> None:
        """Refuse groups of one response: their advantages would all be 0."""
        group_size: int = trainer.datamodule.group_size  # type: ignore[attr-defined]
        if group_size < 2:
            raise UserError(
                f"GroupNormalize compares the responses to a prompt with each other: group_size={group_size} must be at "
                "least 2"
            )

    def on_rollout_advantages(self, trainer: Trainer, module: LightningModule, rollout: Rollout) -> None:
        """Set `rollout.advantages`, (B, R): a response's number at each of its tokens, 0 elsewhere."""
        rewards, mask, batch_std = rollout.penalised_rewards, rollout.response_mask, None
        if self.scale == "mean" and bool((rewards < 0).any()):
            raise UserError(
                "GroupNormalize: scale: mean is for rewards of at least 0, and some are below: use std or none"
            )
        if self.scale == "batch" and trainer.world_size > 1:
            everywhere = torch.as_tensor(module.all_gather(rewards)).flatten()
            batch_std = everywhere[~everywhere.isnan()].std(correction=self.ddof)
        advantages = group_normalize(
            rewards,
            rollout.group_ids,
            rollout.scored,
            self.scale,
            self.eps,
            self.ddof,
            batch_std,
            self.baseline,
            mask.sum(1),
        )
        rollout.advantages = torch.where(mask, advantages.unsqueeze(1), 0)
        if self.whiten:
            rollout.advantages = masked_whiten(rollout.advantages, mask, module.total)  # type: ignore[arg-type]

"""Group-relative advantages, as in GRPO."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule, Trainer

from rl_lightning.errors import UserError
from rl_lightning.functional import group_normalize
from rl_lightning.functional.advantages import AdvantageScale
from rl_lightning.hooks import RolloutCallback
from rl_lightning.types import Rollout


class GroupNormalize(RolloutCallback):
    """Give every token of a response the advantage (r − mean) / (std + eps); mean and std are over the response's group.

    r is the reward, minus the divergence if that acts in the reward. See `rl_lightning.functional.group_normalize`.

    Args:
        scale: divide by the group's standard deviation (`std`, GRPO), by that of all rewards (`batch`), or by nothing (`none`,
            Dr.GRPO).
        eps: added to the standard deviation, in units of reward.
        ddof: divisor n − ddof of the variance: 1 for the unbiased one, 0 for the population's.
    """

    supplies = ("advantages",)

    def __init__(self, scale: AdvantageScale = "std", eps: float = 1e-6, ddof: int = 1) -> None:
        self.scale: AdvantageScale = scale
        self.eps = eps
        self.ddof = ddof

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
        rewards, batch_std = rollout.penalised_rewards, None
        if self.scale == "batch" and trainer.world_size > 1:
            everywhere = torch.as_tensor(module.all_gather(rewards)).flatten()
            batch_std = everywhere[~everywhere.isnan()].std(correction=self.ddof)
        advantages = group_normalize(
            rewards, rollout.group_ids, rollout.scored, self.scale, self.eps, self.ddof, batch_std
        )
        rollout.advantages = torch.where(rollout.response_mask, advantages.unsqueeze(1), 0)

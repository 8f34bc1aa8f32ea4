"""What the rewards of a rollout look like within its groups."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer

from rl_lightning.functional import group_std, rank_correlation
from rl_lightning.hooks import RolloutCallback
from rl_lightning.measures import Mean
from rl_lightning.types import Rollout


class GroupShape(RolloutCallback):
    """Log how rewards differ within a group, and how they go with length, as shaped by the callbacks before this one.

    Logs `rollout/group_std`, the standard deviation of the rewards of a prompt's answers (divisor n − 1), mean over prompts; and
    `rollout/length_correlation`, the rank correlation of reward and length in tokens within a prompt, mean over the prompts whose answers
    differ in both. Dropped groups count too. Neither is an alarm: see `docs/how-to/trust.md`.
    """

    only_looks = True

    def on_rollout_rewards(self, trainer: Trainer, module: LightningModule, rollout: Rollout) -> None:
        """Look at the scored answers; the rewards stay as they are. Where nothing judges answers there is nothing to see."""
        if not rollout.reward_components:
            return
        scored = rollout.scored
        rewards, groups = rollout.rewards[scored], rollout.group_ids[scored]
        measured = {
            "rollout/group_std": group_std(rewards, groups),
            "rollout/length_correlation": rank_correlation(rewards, rollout.policy_lengths[scored], groups),
        }
        rollout.metrics |= {name: Mean.of(values, ~values.isnan()) for name, values in measured.items()}

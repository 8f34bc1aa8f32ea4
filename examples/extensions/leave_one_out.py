"""The leave-one-out advantage of RLOO (arXiv 2402.14740): a reward minus the mean of the other rewards of its group."""

import torch

from rl_lightning.callbacks import GroupNormalize
from rl_lightning.functional import group_normalize


class LeaveOneOut(GroupNormalize):
    """Give each response A_i = r_i − mean_{j≠i} r_j = n / (n − 1) · (r_i − mean r), over the n responses with a reward."""

    def __init__(self) -> None:
        super().__init__(scale="none")

    def on_rollout_advantages(self, trainer, module, rollout) -> None:
        """Set `rollout.advantages`, (B, R)."""
        centred = group_normalize(rollout.penalised_rewards, rollout.group_ids, rollout.scored, scale="none")
        n, _ = rollout.votes()
        advantages = centred * n / (n - 1).clamp(min=1)
        rollout.advantages = torch.where(rollout.response_mask, advantages.unsqueeze(1), 0)

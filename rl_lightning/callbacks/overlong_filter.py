"""Learn nothing from responses that were cut off."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule, Trainer

from rl_lightning.hooks import RolloutCallback
from rl_lightning.measures import Mean
from rl_lightning.types import Rollout


class OverlongFilter(RolloutCallback):
    """Leave truncated responses out of the loss: out of its numerator and its denominator.

    Their rewards stay in the mean and the deviation of their group, so that the others are compared with all that was
    sampled. Nothing then keeps responses from growing beyond the cap; `OverlongShaping` does.

    Logs `rollout/filtered_fraction`, the share of the rollout's responses that counted before and no longer do.

    Source: DAPO (arXiv 2503.14476) section 3.4, "overlong filtering", an ablation that the final recipe leaves out.
    """

    def on_rollout_advantages(self, trainer: Trainer, module: LightningModule, rollout: Rollout) -> None:
        """Take the tokens of truncated responses out of what counts, and their advantages if there are some already."""
        counting = rollout.response_mask.any(1)
        rollout.metrics["rollout/filtered_fraction"] = Mean.of(rollout.truncated, counting)
        rollout.response_mask = rollout.response_mask & ~rollout.truncated.unsqueeze(1)
        if rollout.advantages is not None:
            # Whether this or what fills in the advantages stands first in the YAML, the rollout ends up the same.
            rollout.advantages = torch.where(rollout.response_mask, rollout.advantages, 0)

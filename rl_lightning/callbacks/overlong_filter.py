"""Overlong filtering: responses that were cut off do not count in the loss."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule, Trainer

from rl_lightning.hooks import RolloutCallback
from rl_lightning.measures import Mean
from rl_lightning.types import Rollout


class OverlongFilter(RolloutCallback):
    """Leave truncated responses out of the loss, in numerator and denominator.

    Their rewards still enter the mean and standard deviation of their group. Note that this puts no pressure on the length of
    responses; `OverlongShaping` does.

    Logs `rollout/filtered_fraction`, the share of responses that this callback takes out.

    Source: DAPO (arXiv 2503.14476) section 3.4, "overlong filtering", an ablation that is not part of the final recipe.
    """

    def on_rollout_advantages(self, trainer: Trainer, module: LightningModule, rollout: Rollout) -> None:
        """Set `rollout.response_mask` to False, and advantages to 0, on truncated responses."""
        counting = rollout.response_mask.any(1)
        rollout.metrics["rollout/filtered_fraction"] = Mean.of(rollout.truncated, counting)
        rollout.response_mask = rollout.response_mask & ~rollout.truncated.unsqueeze(1)
        if rollout.advantages is not None:
            # The result must not depend on whether this callback or the one that makes the advantages comes first in the YAML.
            rollout.advantages = torch.where(rollout.response_mask, rollout.advantages, 0)

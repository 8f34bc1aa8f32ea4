"""Where a callback can step into a rollout."""

from __future__ import annotations

from typing import ClassVar

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from rl_lightning.types import Rollout


class RolloutCallback(Callback):
    """A Lightning callback that also sees every rollout before it is trained on.

    The stages come in this order, each for all callbacks, so the order of callbacks in a YAML does not matter between
    stages: `on_rollout_rewards` and `keep_groups`, again and again until there are enough groups; then the policy scores
    the rollout; then `on_rollout_advantages`, `on_rollout_end`.
    """

    #: Fields of the rollout that this callback fills in; an algorithm that needs one is refused without it.
    supplies: ClassVar[tuple[str, ...]] = ()

    def check_settings(self, trainer: Trainer) -> None:
        """Refuse settings that cannot work, by a `UserError`, before anything is read or sampled.

        `trainer.datamodule` is the rollout data; its sizes are known, its prompts are not read yet.
        """

    def on_rollout_rewards(self, trainer: Trainer, module: LightningModule, rollout: Rollout) -> None:
        """Change `rollout.rewards`."""

    def keep_groups(self, trainer: Trainer, module: LightningModule, rollout: Rollout) -> Tensor | None:
        """Return which groups to train on, by row: (B,) bool, the same for all rows of a group; None for all of them."""
        return None

    def on_rollout_advantages(self, trainer: Trainer, module: LightningModule, rollout: Rollout) -> None:
        """Fill in `rollout.advantages` from `rollout.rewards`."""

    def on_rollout_end(self, trainer: Trainer, module: LightningModule, rollout: Rollout) -> None:
        """Look at the finished rollout; its metrics may still be added to."""

"""Histograms of rollouts in TensorBoard."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer

from rl_lightning.callbacks.tensorboard import writers
from rl_lightning.hooks import RolloutCallback
from rl_lightning.types import Microbatch, Rollout


class Histograms(RolloutCallback):
    """Write histograms of reward, length, advantage and importance ratio to TensorBoard.

    Args:
        every_n_rollouts: write those of every n-th rollout.
    """

    def __init__(self, every_n_rollouts: int = 10) -> None:
        self.every_n_rollouts = every_n_rollouts

    def _due(self, trainer: Trainer) -> bool:
        return trainer.current_epoch % max(1, self.every_n_rollouts) == 0

    def on_rollout_end(self, trainer: Trainer, module: LightningModule, rollout: Rollout) -> None:
        """Write the histograms of rewards, lengths in tokens, and advantages of first tokens, before training on the rollout."""
        if not self._due(trainer) or not bool(rollout.scored.any()):
            return
        for writer in writers(trainer):
            writer.add_histogram("rollout/reward", rollout.rewards[rollout.scored], trainer.global_step)
            writer.add_histogram("rollout/length", rollout.lengths, trainer.global_step)
            if rollout.advantages is not None:
                writer.add_histogram("rollout/advantage", rollout.advantages[:, 0], trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: Microbatch, batch_idx: int
    ) -> None:
        """Write the ratios π_θ/π_old of the rollout's last microbatch, which is the farthest off policy."""
        if not self._due(trainer) or not trainer.is_last_batch:
            return
        ratios = pl_module.observations.latest.get("policy/ratio_mean")  # type: ignore[union-attr, operator]
        if ratios is not None and ratios.numel():
            for writer in writers(trainer):
                writer.add_histogram("policy/ratio", ratios, trainer.global_step)

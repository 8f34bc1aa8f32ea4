"""Histograms of rollouts."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from rl_lightning.callbacks.loggers import loggers, write_histogram
from rl_lightning.hooks import RolloutCallback
from rl_lightning.types import Microbatch, Rollout


class Histograms(RolloutCallback):
    """Write histograms of reward, length, advantage and importance ratio to the loggers that show them.

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
        shown = {"rollout/reward": rollout.rewards[rollout.scored], "rollout/length": rollout.policy_lengths}
        if rollout.advantages is not None:
            shown["rollout/advantage"] = rollout.advantages[:, 0]
        self._write(trainer, shown)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: Microbatch, batch_idx: int
    ) -> None:
        """Write the ratios π_θ/π_old of the rollout's last microbatch, which is the farthest off policy."""
        if not self._due(trainer) or not trainer.is_last_batch:
            return
        ratios = pl_module.observations.latest.get("policy/ratio_mean")  # type: ignore[union-attr, operator]
        if ratios is not None and ratios.numel():
            self._write(trainer, {"policy/ratio": ratios})

    def _write(self, trainer: Trainer, shown: dict[str, Tensor]) -> None:
        for logger in loggers(trainer):
            for tag, values in shown.items():
                write_histogram(logger, tag, values, trainer.global_step)

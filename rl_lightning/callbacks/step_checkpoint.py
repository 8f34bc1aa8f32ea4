"""Checkpoints after optimizer steps, from which nothing that is logged is missing."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


class StepCheckpoint(ModelCheckpoint):
    """Save every so many optimizer steps, also in the middle of a rollout, such that a run which is killed at any moment goes
    on from the last checkpoint with the same curves.

    The checkpoint of an epoch's last step is written when the epoch is over: Lightning does not validate a second time
    after a checkpoint from between the step and its validation, so a kill in between would cost that validation.

    Args:
        every_n_train_steps: optimizer steps from one checkpoint to the next.
        save_last: whether there is a `last.ckpt`, where `--ckpt_path last` looks.
        **checkpoint_options: dirpath, filename, save_top_k and so on: see `ModelCheckpoint`.
    """

    def __init__(self, every_n_train_steps: int = 1, save_last: bool = True, **checkpoint_options: Any) -> None:
        super().__init__(every_n_train_steps=every_n_train_steps, save_last=save_last, **checkpoint_options)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save, but for the last step of an epoch."""
        if not trainer.is_last_batch:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, if the last step was due."""
        super().on_train_batch_end(trainer, pl_module, None, None, 0)

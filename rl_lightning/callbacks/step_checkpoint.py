"""Checkpoints after optimizer steps, also in the middle of a rollout."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.types import STEP_OUTPUT

from rl_lightning.errors import UserError
from rl_lightning.typed import Typed


class StepCheckpoint(ModelCheckpoint, metaclass=Typed):
    """Save a checkpoint every n optimizer steps. A run that is killed at any moment resumes from it with the same curves.

    The checkpoint of an epoch's last step is written after the epoch's validation. Lightning would not repeat a validation that a
    kill interrupts after an earlier checkpoint.

    Args:
        every_n_train_steps: optimizer steps between two checkpoints.
        save_last: also keep `last.ckpt`, which `--ckpt_path last` loads.
        **checkpoint_options: dirpath, filename, save_top_k and so on: see `ModelCheckpoint`.

    Raises:
        UserError: for less than one step.
    """

    def __init__(self, every_n_train_steps: int = 1, save_last: bool = True, **checkpoint_options: Any) -> None:
        if every_n_train_steps < 1:
            raise UserError(f"StepCheckpoint: every_n_train_steps must be at least 1, not {every_n_train_steps}")
        super().__init__(every_n_train_steps=every_n_train_steps, save_last=save_last, **checkpoint_options)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: object, batch_idx: int
    ) -> None:
        """Save after a step that is due, unless it is the last one of the epoch. After a microbatch that ends no step, Lightning would
        save too if the run has just gone on: it does not know then what was saved before."""
        if not trainer.is_last_batch and not trainer.fit_loop.epoch_loop._should_accumulate():
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after the epoch's last step if that is due."""
        super().on_train_batch_end(trainer, pl_module, None, None, 0)

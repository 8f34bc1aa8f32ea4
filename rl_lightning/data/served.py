"""What Lightning asks of every DataModule here: one loader for training, and batches on their device."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch

from rl_lightning.data.epochs import Epoch, EpochLoader
from rl_lightning.errors import UserError
from rl_lightning.hooks import Watch
from rl_lightning.types import Rows, Sealed


class EpochDataModule(pl.LightningDataModule):
    """Data that are served epoch by epoch through one loader; subclasses say what an epoch is."""

    def __init__(self) -> None:
        super().__init__()
        self.watch = Watch()
        self.loader = EpochLoader(self)

    def microbatches_per_epoch(self) -> int:
        """Return how many forward passes an epoch has on each rank."""
        raise UserError(f"{type(self).__name__} has nothing to train on: it only evaluates")

    def epoch(self, number: int, state: dict[str, Any] | None) -> Epoch:
        """Make epoch `number`, or restore it from its state."""
        raise UserError(f"{type(self).__name__} has nothing to train on: it only evaluates")

    def train_dataloader(self) -> EpochLoader:
        """Return the loader whose every pass is one epoch: always the same, so that no reload starts it anew."""
        return self.loader

    def transfer_batch_to_device(self, batch: Sealed, device: torch.device, dataloader_idx: int) -> Rows:
        """Open a batch and move it."""
        return batch.batch.to(device)

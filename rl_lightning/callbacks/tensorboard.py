"""The TensorBoard writer of a run, where it has one."""

from __future__ import annotations

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard import SummaryWriter


def writers(trainer: Trainer) -> list[SummaryWriter]:
    """Return the TensorBoard writers of this process: none without such a logger, and none but on rank 0."""
    if not trainer.is_global_zero:
        return []
    return [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]

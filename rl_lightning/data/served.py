"""What Lightning asks of every DataModule here: loaders, batches on their device, and how far the run has come."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn

from rl_lightning.data.epochs import Epoch, EpochLoader
from rl_lightning.data.fits import without_reward
from rl_lightning.data.record import refuse_changes
from rl_lightning.data.sources import ExampleSource
from rl_lightning.data.sources.base import Split
from rl_lightning.errors import UserError
from rl_lightning.hooks import Watch
from rl_lightning.learner import Learner
from rl_lightning.strategies import data_parallel_rank, data_parallel_size
from rl_lightning.types import Rollout, Rows, Sealed


class EpochDataModule(pl.LightningDataModule):
    """Data that are served epoch by epoch through one loader, and held-out data; subclasses say what an epoch is.

    Args:
        source: of all examples.
    """

    def __init__(self, source: ExampleSource) -> None:
        super().__init__()
        self.source = source
        self.watch = Watch()
        #: The split that `predict` and an audit answer.
        self.predicts: Split = "test"
        self.loader = EpochLoader(self)

    @property
    def run(self) -> pl.Trainer:
        """The Trainer that these data are given to.

        Raises:
            UserError: if there is none yet.
        """
        if self.trainer is None:
            raise UserError(f"{type(self).__name__} needs a Trainer: pass it to trainer.fit(module, datamodule=...)")
        return self.trainer

    @property
    def module(self) -> Learner:
        """The algorithm that these data serve."""
        return cast(Learner, self.run.lightning_module)

    # ---------------------------------------------------------------- training

    def microbatches_per_epoch(self) -> int:
        """Return how many forward passes an epoch has on each rank."""
        raise UserError(f"{type(self).__name__} has nothing to train on: it only evaluates")

    def epoch(self, number: int, state: dict[str, object] | None) -> Epoch:
        """Make epoch `number`, or restore it from its state."""
        raise UserError(f"{type(self).__name__} has nothing to train on: it only evaluates")

    def train_dataloader(self) -> EpochLoader:
        """Return the loader whose every pass is one epoch: always the same, so that no reload starts it anew."""
        return self.loader

    def transfer_batch_to_device(self, batch: Sealed, device: torch.device, dataloader_idx: int) -> Rows:
        """Open a batch and move it; rollouts, which are measured and written down, stay on the host."""
        return batch.batch if isinstance(batch.batch, Rollout) else batch.batch.to(device)

    # ---------------------------------------------------------------- held out

    def held_out_loader(self, kind: str, split: Split) -> Iterable[Sealed] | None:
        """Return the held-out data of one kind, batch by batch; None if there are none.

        Args:
            kind: one of the module's `evaluates_on`.
            split: of the data.
        """
        return None

    def _held_out(self, split: Split, kinds: Sequence[str]) -> list[Iterable[Sealed]]:
        found = (self.held_out_loader(kind, split) for kind in kinds)
        return [loader for loader in found if loader is not None]

    def val_dataloader(self) -> list[Iterable[Sealed]]:
        """Return the validation data, batch by batch, one loader for each kind that the module is measured on; [] if there are none."""
        return self._held_out("val", self.module.evaluates_on) if self.source.has("val") else []

    def test_dataloader(self) -> list[Iterable[Sealed]]:
        """Return the data of the split `test`, batch by batch, one loader for each kind that the module is measured on.

        Raises:
            UserError: if there is nothing to measure.
        """
        loaders = self._held_out("test", self.module.evaluates_on)
        if not loaders:
            raise UserError(f"There is nothing to measure: {without_reward(self.source)}")
        return loaders

    def predict_dataloader(self) -> list[Iterable[Sealed]]:
        """Return the data of the split `predicts`, batch by batch, one loader for the last kind that the module is measured on.

        Raises:
            UserError: if there is nothing to answer.
        """
        loaders = self._held_out(self.predicts, self.module.evaluates_on[-1:])
        if not loaders:
            raise UserError(f"There is nothing to predict: {without_reward(self.source)}")
        return loaders

    # ------------------------------------------------------------------ resume

    def record(self) -> dict[str, object]:
        """Return what may not change between a checkpoint and a run that goes on from it: option or thing → plain value."""
        return {"model.class_path": type(self.module).__name__, "data.class_path": type(self).__name__}

    def state_dict(self) -> dict[str, object]:
        """Return how far training has come, and in what."""
        return self.loader.progress() | {"record": self.record()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a checkpoint was made.

        Raises:
            UserError: if this run's data are others.
        """
        assert self.trainer is not None
        if self.trainer.state.fn == TrainerFn.FITTING:
            refuse_changes(state_dict["record"], self.record())
        self.loader.restore(state_dict, data_parallel_rank(self.trainer), data_parallel_size(self.trainer))

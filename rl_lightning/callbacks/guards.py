"""A guard against losses and gradients that are not finite."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from rl_lightning import types
from rl_lightning.errors import UserError
from rl_lightning.strategies import atomic_save, from_every_rank, load_plain
from rl_lightning.strategies.sharding import whole
from rl_lightning.typed import Typed
from rl_lightning.types import Microbatch, Rows

log = logging.getLogger(__name__)


class _Guarded(Protocol):
    """A module that skips optimizer steps whose loss or gradient is not finite."""

    finite: bool

    @property
    def device(self) -> torch.device: ...

    def loss(self, batch: Microbatch) -> Tensor: ...

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> object: ...


class NonFiniteGuard(Callback, metaclass=Typed):
    """Count optimizer steps with a loss or gradient that is not finite, and stop the run after several in a row.

    The module skips such a step: the weights stay as they are. The first skipped step is written to a file, with the weights and
    the batches of every rank; `replay` computes its loss again. In float16 training the gradient scaler skips steps that
    overflow and lowers its scale; such a step counts here only once the scale is below 1.

    Logs `guard/skipped_steps`, the number of skipped steps in the run, with each of them.

    Args:
        max_in_a_row: end the run with an error after this many skipped steps in a row.
        dirpath: directory of the file; the trainer's `default_root_dir` if null.

    Raises:
        UserError: for a `max_in_a_row` below 1.
    """

    def __init__(self, max_in_a_row: int = 5, dirpath: str | None = None) -> None:
        if max_in_a_row < 1:
            raise UserError(f"NonFiniteGuard: max_in_a_row must be at least 1, not {max_in_a_row}")
        self.max_in_a_row = max_in_a_row
        self.dirpath = dirpath
        self._batches: list[Rows] = []
        self._in_a_row = 0
        self._skipped = 0
        self._dump: Path | None = None

    def state_dict(self) -> dict[str, int]:
        """Return how many steps were skipped, in all and in a row up to now."""
        return {"skipped": self._skipped, "in_a_row": self._in_a_row}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Continue both counts from a checkpoint."""
        self._skipped, self._in_a_row = state_dict["skipped"], state_dict["in_a_row"]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Rows, batch_idx: int) -> None:
        """Keep the microbatches of the optimizer step, in case it must be written to the file."""
        self._batches.append(batch)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: Microbatch, batch_idx: int
    ) -> None:
        """Count a complete optimizer step if the module skipped it.

        Raises:
            UserError: after `max_in_a_row` skipped steps in a row.
        """
        if not batch.ends_step:
            return
        batches, self._batches = self._batches, []
        if cast(_Guarded, pl_module).finite:
            self._in_a_row = 0
            return
        self._skipped += 1
        self._in_a_row += 1
        pl_module.log("guard/skipped_steps", float(self._skipped))
        if self._dump is None:
            self._dump = self._write(trainer, batches)
        if self._in_a_row >= self.max_in_a_row:
            raise UserError(
                f"{self._in_a_row} optimizer steps in a row had losses or gradients that are not finite: lower optimizer.lr, "
                f"check the rewards, or train in a wider precision; the first is in {self._dump}"
            )

    def _write(self, trainer: Trainer, batches: list[Rows]) -> Path:
        """Write a step to a file on rank 0, with the batches of all ranks, and log its path; every rank must call this."""
        path = Path(self.dirpath or trainer.default_root_dir) / f"not_finite-step{trainer.global_step}.pt"
        own = [{"kind": type(batch).__name__, **vars(batch.to("cpu"))} for batch in batches]
        ranks = from_every_rank(own)
        state = {name: whole(value) for name, value in trainer.strategy.lightning_module_state_dict().items()}
        if not trainer.is_global_zero:
            return path
        said = f"Optimizer step {trainer.global_step} had a loss or gradient that is not finite and was skipped"
        try:
            atomic_save({"state_dict": state, "batches": [batch for rank in ranks for batch in rank]}, path)
            log.warning("%s; what it was made of is in %s", said, path)
        except UserError as error:  # a file that cannot be written must not end the run
            log.warning("%s; what it was made of is lost: %s", said, error)
        return path


def replay(path: str | Path, module: _Guarded) -> Tensor:
    """Compute the loss of an optimizer step that `NonFiniteGuard` has written to a file.

    Args:
        path: the file.
        module: made with the settings of that run, its models loaded by `configure_model`. Its weights are replaced.

    Returns:
        A scalar with its graph, over the microbatches of all ranks.
    """
    dump = load_plain(path, map_location="cpu")
    module.load_state_dict(dump["state_dict"])
    batches = [getattr(types, contents.pop("kind"))(**contents) for contents in dump["batches"]]
    return torch.stack([module.loss(batch.to(module.device)) for batch in batches]).sum()

"""A sized, lazy loader over one epoch after another, which can be resumed anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from lightning.pytorch import Trainer

from rl_lightning.data.steps import StepSizes
from rl_lightning.errors import UserError
from rl_lightning.hooks import Watch
from rl_lightning.strategies import from_every_rank
from rl_lightning.types import Microbatch, Sealed

#: The position after the last microbatch of an epoch.
_END = -1


class Epoch(Protocol):
    """One Lightning epoch's worth of microbatches, which can be entered anywhere."""

    def microbatches(self, start: int) -> Iterator[Microbatch]:
        """Yield the microbatches from number `start` on."""

    def state_dict(self) -> dict[str, Any]:
        """Return what is needed to yield the same microbatches in another process."""


class EpochSource(Protocol):
    """Makes epochs by number."""

    watch: Watch

    def microbatches_per_epoch(self) -> int:
        """Return how many microbatches every epoch has."""

    def epoch(self, number: int, state: dict[str, Any] | None) -> Epoch:
        """Make an epoch, or restore one from its state."""

    def check_position(self, position: int) -> None:
        """Refuse to begin where the Trainer is not; it counts batches too."""


class EpochLoader:
    """A sized, lazy iterable over the microbatches of one epoch after another, which can be resumed.

    It has a length, so Lightning does not fetch ahead: with a batch in advance, the next rollout would be sampled
    before the last update of this one. An epoch is made when its first microbatch is asked for. Its DataModule keeps it
    and its state: Lightning restores a loader's own state only for checkpoints from within an epoch.
    """

    def __init__(self, source: EpochSource) -> None:
        self._source = source
        self._number = -1
        self._position = 0
        self._epoch: Epoch | None = None
        self._restored: dict[str, Any] | None = None

    def __len__(self) -> int:
        return self._source.microbatches_per_epoch()

    def __iter__(self) -> Iterator[Sealed]:
        self._source.watch.on_boundary(True)
        saved, self._restored = self._restored, None
        if saved is not None and saved["microbatches"] not in (None, len(self)):
            raise UserError(
                f"the checkpoint is from the middle of an epoch of {saved['microbatches']} microbatches and epochs have {len(self)} "
                "now: use the same microbatch_size or max_tokens_per_microbatch, or a checkpoint from the end of an epoch"
            )
        if saved is None or self._number < 0 or self._position == _END:
            self._number, self._position, saved = self._number + 1, 0, None
        self._source.check_position(self._position)
        self._epoch = self._source.epoch(self._number, None if saved is None else saved["epoch"])
        ended = False
        for batch in self._epoch.microbatches(self._position):
            if ended:
                self._source.watch.on_boundary(True)
            self._position += 1
            ended = batch.ends_step
            yield Sealed(batch)

    def progress(self) -> dict[str, Any]:
        """Return the epoch's number, the position in it, and, in its middle, the epoch itself as every rank has it.

        The end is not given as a number of microbatches: whoever goes on from there may have another number of ranks.
        """
        position = _END if self._position >= len(self) else self._position
        inside = position > 0
        if self._restored is not None:  # nothing was asked for since
            own = self._restored["epoch"]
        else:
            own = self._epoch.state_dict() if inside and self._epoch is not None else None
        ranks = from_every_rank(own) if inside else []
        return {"number": self._number, "position": position, "microbatches": len(self), "ranks": ranks}

    def restore(self, progress: dict[str, Any], rank: int, ranks: int) -> None:
        """Go on where `progress` was taken.

        Raises:
            UserError: for the middle of an epoch on another number of ranks.
        """
        states = progress["ranks"]
        if states and len(states) != ranks:
            raise UserError(
                f"the checkpoint is from the middle of an epoch on {len(states)} rank(s) and cannot go on with {ranks}: use as "
                "many devices as then, or a checkpoint from the end of an epoch"
            )
        self._number, self._position = progress["number"], progress["position"]
        inside = progress.get("microbatches") if states else None
        self._restored = {"epoch": states[rank] if states else None, "microbatches": inside}


def accumulate(trainer: Trainer, sizes: StepSizes) -> StepSizes:
    """Tell Lightning how many forward passes make an optimizer step, and return the sizes.

    Args:
        trainer: its `accumulate_grad_batches` is set, as Lightning's own scheduler of accumulation does.
        sizes: of an optimizer step.

    Raises:
        UserError: if the trainer was given another number.
    """
    if trainer.accumulate_grad_batches not in (1, sizes.accumulate):
        raise UserError(
            f"trainer.accumulate_grad_batches={trainer.accumulate_grad_batches} contradicts the {sizes.accumulate} microbatches "
            "that an optimizer step is cut into; leave it out, it follows from the sizes"
        )
    trainer.accumulate_grad_batches = sizes.accumulate
    return sizes


def refuse_partial_epochs(trainer: Trainer, microbatches: int) -> None:
    """Refuse to train on part of an epoch: optimizer steps would lack tokens that their weights count.

    Raises:
        UserError: for `limit_train_batches` or `overfit_batches` between none and all; `fast_dev_run` may.
    """
    limit = trainer.limit_train_batches
    whole = limit in (0, 1.0) if isinstance(limit, float) else limit == 0 or limit >= microbatches
    if not whole and not trainer.fast_dev_run:  # type: ignore[attr-defined]
        raise UserError(
            f"limit_train_batches={limit} would cut an epoch of {microbatches} microbatches short, in the middle of an optimizer "
            "step: use fewer prompts, or trainer.max_steps"
        )

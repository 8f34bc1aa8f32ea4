"""A sized, lazy loader over one epoch after another, which can be resumed anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, TypedDict

from lightning.pytorch import Trainer

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

    def state_dict(self) -> dict[str, object]:
        """Return what is needed to yield the same microbatches in another process."""


class EpochSource(Protocol):
    """Makes epochs by number."""

    @property
    def trainer(self) -> Trainer | None:
        """Knows how far the run is; None outside of a run."""

    @property
    def watch(self) -> Watch:
        """May end the run between two optimizer steps."""

    def microbatches_per_epoch(self) -> int:
        """Return how many microbatches every epoch has."""

    def epoch(self, number: int, state: dict[str, object] | None) -> Epoch:
        """Make an epoch, or restore one from its state."""


class _Restored(TypedDict):
    """What a checkpoint holds of this rank's epoch: its state, and its number of microbatches; None each if it had ended."""

    epoch: dict[str, object] | None
    microbatches: int | None


class EpochLoader:
    """A sized, lazy iterable over the microbatches of one epoch after another, which can be resumed.

    It has a length, so Lightning does not fetch ahead: with a batch in advance, the next rollout would be sampled
    before the last update of this one. An epoch is made when its first microbatch is asked for. Its DataModule keeps it
    and its state: Lightning restores a loader's own state only for checkpoints from within an epoch.
    """

    def __init__(self, source: EpochSource) -> None:
        self.source = source
        self._number = -1
        self._position = 0
        self._step_began = 0  # where the microbatches of the present optimizer step begin
        self._epoch: Epoch | None = None
        self._restored: _Restored | None = None

    def __len__(self) -> int:
        return self.source.microbatches_per_epoch()

    def __iter__(self) -> Iterator[Sealed]:
        self.source.watch.on_boundary(True)
        saved, self._restored = self._restored, None
        if saved is not None and saved["microbatches"] not in (None, len(self)):
            raise UserError(
                f"the checkpoint is from the middle of an epoch of {saved['microbatches']} microbatches and epochs have {len(self)} "
                "now: use the same microbatch_size or max_tokens_per_microbatch, or a checkpoint from the end of an epoch"
            )
        if saved is None or self._number < 0 or self._position == _END:
            self._number, self._position, self._step_began, saved = self._number + 1, 0, 0, None
        if self.source.trainer is not None:
            check_position(self.source.trainer, self._position)
        self._epoch = self.source.epoch(self._number, None if saved is None else saved["epoch"])
        ended = False
        for batch in self._epoch.microbatches(self._position):
            if ended:
                self.source.watch.on_boundary(True)
            self._position += 1
            ended = batch.ends_step
            self._step_began = self._position if ended else self._step_began
            yield Sealed(batch)

    def progress(self) -> dict[str, object]:
        """Return the epoch's number, the position in it, and, in its middle, the epoch itself as every rank has it.

        The position is where an optimizer step begins: gradients that are yet to be added up are in no checkpoint. The end is not
        given as a number of microbatches: whoever goes on from there may have another number of ranks.
        """
        position, own = (_END, None) if self._position >= len(self) else (self._step_began, None)
        if self._restored is not None:  # nothing was asked for since
            own = self._restored["epoch"]
        elif position != _END and self._position > 0 and self._epoch is not None:
            own = self._epoch.state_dict()
        ranks = [] if own is None else from_every_rank(own)
        return {"number": self._number, "position": position, "microbatches": len(self), "ranks": ranks}

    def restore(self, progress: dict[str, Any], rank: int, ranks: int) -> None:
        """Go on where `progress` was taken.

        Raises:
            UserError: for the middle of an epoch on another number of ranks.
        """
        if (states := progress["ranks"]) and len(states) != ranks:
            raise UserError(
                f"the checkpoint is from the middle of an epoch on {len(states)} rank(s) and cannot go on with {ranks}: use as "
                "many devices as then, or a checkpoint from the end of an epoch"
            )
        self._number = progress["number"]
        self._position = self._step_began = progress["position"]
        inside = progress.get("microbatches") if states else None
        self._restored = {"epoch": states[rank] if states else None, "microbatches": inside}


def check_position(trainer: Trainer, position: int) -> None:
    """Refuse to begin an epoch where the Trainer goes on in the middle of one: it would cut the epoch short.

    Raises:
        UserError: for a checkpoint from the last step of an epoch, on another number of ranks or of microbatches.
    """
    if trainer.fit_loop.epoch_loop.batch_progress.current.ready != position:
        raise UserError(
            "the checkpoint is from the last step of an epoch, before the epoch had ended, and epochs have another number of "
            "microbatches now: go on from a checkpoint that was written at the end of an epoch (ModelCheckpoint's "
            "save_on_train_epoch_end: true), or with as many devices and the same microbatch_size (max_tokens_per_microbatch) "
            "as then"
        )

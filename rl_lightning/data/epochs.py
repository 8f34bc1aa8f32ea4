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
            self._number, self._position, saved = self._number + 1, 0, None
        if self.source.trainer is not None:
            check_position(self.source.trainer, self._position)
        self._epoch = None  # a checkpoint from now on has nothing of the one before
        self._epoch = self.source.epoch(self._number, None if saved is None else saved["epoch"])
        served, ended = self._position, False
        for batch in self._epoch.microbatches(served):
            if ended:
                self.source.watch.on_boundary(True)
            served += 1
            ended = batch.ends_step or served == len(self)
            # A checkpoint has no gradients that are yet to be added up: it goes on from the beginning of their step.
            self._position = served if ended else self._position
            yield Sealed(batch)

    def progress(self) -> dict[str, object]:
        """Return the epoch's number, the position in it, and, in its middle, the epoch itself as every rank has it.

        The end is not given as a number of microbatches: whoever goes on from there may have another number of ranks.
        """
        position = _END if self._position >= len(self) else self._position
        epoch = None if position == _END else self._epoch
        own = None if epoch is None else epoch.state_dict()
        if self._restored is not None:  # nothing was asked for since
            own = self._restored["epoch"]
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
        self._number, self._position = progress["number"], progress["position"]
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

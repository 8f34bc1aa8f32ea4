"""Microbatches in optimizer steps: sizes that add up, and an iterable that can be resumed anywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from rl_lightning.data.cuts import Stretches
from rl_lightning.errors import UserError
from rl_lightning.functional import BatchTotals, Reduction, batch_totals, token_weights
from rl_lightning.strategies import data_parallel_size, from_every_rank, sum_over_ranks
from rl_lightning.types import Microbatch, Rows, Sealed

#: The position after the last microbatch of an epoch.
_END = -1


@dataclass(frozen=True)
class StepSizes:
    """How one optimizer step is cut up.

    Args:
        minibatch: units that one rank contributes to an optimizer step.
        microbatch: units in one forward pass; None where their tokens say how many.
        accumulate: forward passes in an optimizer step, the same number in every step and on every rank.
    """

    minibatch: int
    microbatch: int | None
    accumulate: int

    def cut(self, rows: Rows, order: Tensor, unit: int = 1) -> list[int]:
        """Return how many units of an optimizer step each forward pass takes.

        Args:
            rows: a table.
            order: (n × unit,) long; those of the step's rows that are computed, a unit for each pass at least.
            unit: adjacent rows that are one unit.
        """
        if self.microbatch is None:
            return Stretches.of(rows, order, unit).cut(self.accumulate)
        return [len(part) for part in torch.arange(len(order) // unit).tensor_split(self.accumulate)]


def check_cuts(microbatch_size: int | None, max_tokens: int | None) -> None:
    """Refuse two ways to cut an optimizer step up, and an impossible one.

    Raises:
        UserError: for both options, or a budget below one token.
    """
    if microbatch_size is not None and max_tokens is not None:
        raise UserError(
            "microbatch_size and max_tokens_per_microbatch both say what goes into a forward pass: drop one of them"
        )
    if max_tokens is not None and max_tokens < 1:
        raise UserError(f"max_tokens_per_microbatch must be at least 1, not {max_tokens}")


def bound_line(max_tokens: int | None) -> str:
    """Return what the run card says of the size of microbatches, after their number."""
    return "" if max_tokens is None else f" of up to {max_tokens:,} tokens"


def share_of_rank(trainer: Trainer, minibatch_size: int, unit: int = 1) -> int:
    """Return how many rows of an optimizer step each rank has.

    Args:
        trainer: knows the ranks.
        minibatch_size: rows in an optimizer step, over all ranks.
        unit: rows that must stay together, such as the members of a group.

    Raises:
        UserError: if the ranks cannot have as many.
    """
    ranks = data_parallel_size(trainer)
    if minibatch_size < 1 or minibatch_size % (ranks * unit):
        together = f" whole groups of {unit}" if unit > 1 else ""
        raise UserError(
            f"minibatch_size={minibatch_size} must be a multiple of {ranks * unit}:{together} on {ranks} rank(s)"
        )
    return minibatch_size // ranks


def plan_steps(trainer: Trainer, minibatch: int, microbatch_size: int | None) -> StepSizes:
    """Cut an optimizer step into equal shares, and tell Lightning how many passes to accumulate.

    Args:
        trainer: its `accumulate_grad_batches` is set, as Lightning's own scheduler of accumulation does.
        minibatch: rows that this rank has of an optimizer step.
        microbatch_size: rows in one forward pass of one rank; all that the rank has if None.

    Raises:
        UserError: naming the two sizes that do not divide.
    """
    microbatch = minibatch if microbatch_size is None else microbatch_size
    if microbatch < 1 or minibatch % microbatch:
        raise UserError(
            f"microbatch_size={microbatch_size} must divide the {minibatch} rows that each rank has of an optimizer step"
        )
    return _planned(trainer, StepSizes(minibatch, microbatch, minibatch // microbatch))


def plan_by_tokens(trainer: Trainer, minibatch: int, passes: int) -> StepSizes:
    """Cut an optimizer step by tokens, and tell Lightning how many passes to accumulate.

    Args:
        trainer, minibatch: see `plan_steps`.
        passes: that keep any step within the budget.
    """
    return _planned(trainer, StepSizes(minibatch, None, passes))


def _planned(trainer: Trainer, sizes: StepSizes) -> StepSizes:
    if trainer.accumulate_grad_batches not in (1, sizes.accumulate):
        raise UserError(
            f"trainer.accumulate_grad_batches={trainer.accumulate_grad_batches} contradicts the {sizes.accumulate} microbatches "
            "that an optimizer step is cut into; leave it out, it follows from the sizes"
        )
    trainer.accumulate_grad_batches = sizes.accumulate
    return sizes


def permutation(count: int, *key: int) -> Tensor:
    """Return a random order of `count` things that is a function of the key alone: (count,) long."""
    return torch.from_numpy(np.random.default_rng(list(key)).permutation(count))


def spread(order: Tensor, counts: Tensor, steps: int) -> Tensor:
    """Return an order such that what counts is dealt out evenly over equal steps; the same order if everything counts.

    Args:
        order: (n,) long; a permutation.
        counts: (n,) bool, by number and not by place in the order.
        steps: a divisor of n.

    Example:
        >>> spread(torch.tensor([3, 1, 0, 2]), torch.tensor([True, True, False, False]), steps=2)
        tensor([1, 3, 0, 2])
    """
    if bool(counts.all()):
        return order
    size = len(order) // steps
    counting, rest = order[counts[order]], order[~counts[order]]
    shares = [counting[step::steps] for step in range(steps)]
    fillers = rest.split([size - len(share) for share in shares])
    return torch.cat([torch.cat(pair) for pair in zip(shares, fillers, strict=True)])


def step_totals(trainer: Trainer, steps: list[tuple[Tensor, Tensor]]) -> list[BatchTotals]:
    """Count what optimizer steps are made of over all ranks, with one exchange.

    Args:
        trainer: knows the ranks; every rank must call this with as many steps.
        steps: the response mask (b, R) and group ids (b,) of this rank's whole share of each optimizer step.
    """
    counted = torch.stack([torch.stack(batch_totals(mask, groups)) for mask, groups in steps])
    return [BatchTotals(*totals) for totals in sum_over_ranks(trainer, counted)]


def step_weights(
    trainer: Trainer,
    steps: list[tuple[Tensor, Tensor]],
    reduction: Reduction,
    max_length: int | None,
    totals: list[BatchTotals] | None = None,
) -> list[Tensor]:
    """Return the token weights of some optimizer steps, counted over all ranks.

    Args:
        trainer, steps: see `step_totals`.
        reduction, max_length: see `token_weights`.
        totals: of the steps, where they are known already.

    Returns:
        One (b, R) float64 tensor a step.
    """
    totals = step_totals(trainer, steps) if totals is None else totals
    return [
        token_weights(mask, groups, reduction, BatchTotals(*(count.clamp(min=1) for count in counts)), max_length)
        for (mask, groups), counts in zip(steps, totals, strict=True)
    ]


class Epoch(Protocol):
    """One Lightning epoch's worth of microbatches, which can be entered anywhere."""

    def microbatches(self, start: int) -> Iterator[Microbatch]:
        """Yield the microbatches from number `start` on."""

    def state_dict(self) -> dict[str, Any]:
        """Return what is needed to yield the same microbatches in another process."""


class EpochSource(Protocol):
    """Makes epochs by number."""

    #: Called before every epoch and optimizer step with True, and in the course of sampling with False; may end the run.
    on_boundary: Callable[[bool], None]

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
        self._source.on_boundary(True)
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
                self._source.on_boundary(True)
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

"""Data that are there before training begins: one Lightning epoch is one pass over them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from rl_lightning.data.cuts import table_passes
from rl_lightning.data.evaluation import batches_of_rank
from rl_lightning.data.offline.written import Truncation, WrittenReader
from rl_lightning.data.sampling import SamplingDataModule
from rl_lightning.data.sizes import (
    accumulate,
    bound_line,
    check_cuts,
    equal_cuts,
    refuse_partial_epochs,
    share_of_rank,
)
from rl_lightning.data.steps import StepSizes, permutation, step_totals, step_weights
from rl_lightning.errors import UserError
from rl_lightning.functional import Reduction
from rl_lightning.hooks import Watch
from rl_lightning.strategies import data_parallel_rank, data_parallel_size, sum_over_ranks
from rl_lightning.types import Microbatch, Sealed

log = logging.getLogger(__name__)


class Table(Protocol):
    """Units to learn from, such as demonstrations or pairs. A unit is one row or several."""

    @property
    def longest(self) -> int:
        """L_max in tokens, which the reduction `constant` divides by."""

    @property
    def mean_length(self) -> float:
        """Mean number of response tokens of a unit."""

    @property
    def metrics(self) -> dict[str, float]:
        """What is logged, once, with the first step of the run."""

    def __len__(self) -> int:
        """Return how many units there are."""

    def tokens(self) -> Tensor:
        """Return how many tokens each unit has, (n,) long, a prompt that its rows share counted once."""

    def batch(self, units: Tensor, weights: Tensor | None = None) -> Microbatch:
        """Return some units, as many rows for each, the unit's rows side by side.

        Args:
            units: (n,) long.
            weights: (rows, R') of their tokens; columns beyond the rows' own are cut off.
        """

    def weight_scale(self, reduction: Reduction) -> float:
        """Return a factor on all weights.

        Raises:
            UserError: for a reduction that the table cannot serve.
        """

    def digest(self) -> str:
        """Return a hash of what is trained on."""


class TableLoader:
    """Held-out units in their order, each rank its share; a sized, lazy iterable.

    Args:
        trainer: knows the ranks.
        table: the units.
        size: units in a batch.
        watch: may end the run between two batches.
    """

    def __init__(self, trainer: Trainer, table: Table, size: int, watch: Watch) -> None:
        self.table = table
        self.watch = watch
        self.batches = batches_of_rank(trainer, len(table), size)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Sealed]:
        for units in self.batches:
            self.watch.on_boundary(True)
            yield Sealed(self.table.batch(torch.tensor(units)))


class OfflineDataModule(SamplingDataModule):
    """A table of units, such as demonstrations or pairs; one Lightning epoch goes through all of them in a new random order.

    Units that do not fill the last optimizer step of an epoch wait for the next one's order. Subclasses fill the table in
    `setup`, then call `check_size`.

    Args:
        batch_size: units in an optimizer step, over all ranks.
        microbatch_size: units in one forward pass of one device; as many as the step has there if null.
        max_tokens_per_microbatch: instead of it, the tokens in one forward pass of one device at most, padding not counted.
            An optimizer step has as many passes as the longest units would need, cut so that the largest is as small as it
            can be.
        max_length: longest written text to learn from: prompt and response, in tokens; the policy's context if null.
        truncation: a longer one is left out and counted (`drop`); or its prompt loses its beginning (`left`: a special token
            in front stays, both responses of a pair keep the same prompt, and no response is cut); or its response loses its end
            (`right`). Where `max_length` is null, `drop` does what `prompt_options.on_bad` says.
        **sampling_options: prompts, rewards, and what serves evaluation, which samples the policy as for the other
            algorithms: see `SamplingDataModule`.
    """

    sizes: StepSizes

    def __init__(
        self,
        batch_size: int = 64,
        microbatch_size: int | None = None,
        max_tokens_per_microbatch: int | None = None,
        max_length: int | None = None,
        truncation: Truncation = "drop",
        **sampling_options: Any,
    ) -> None:
        super().__init__(**sampling_options)
        if max_length is not None and max_length < 2:
            raise UserError(f"max_length must be at least 2, not {max_length}")
        self.max_length = max_length
        self.truncation = truncation
        self.batch_size = batch_size
        check_cuts(microbatch_size, max_tokens_per_microbatch)
        self.microbatch_size = microbatch_size
        self.max_tokens_per_microbatch = max_tokens_per_microbatch

    def written_reader(self, pairs: bool) -> WrittenReader:
        """Return what reads written responses; in pairs, each with the rejected one."""
        limits = [limit for limit in (self.max_length, self.module.policy_files.context_length) if limit is not None]
        return WrittenReader(
            self.text_format,
            pairs,
            min(limits, default=None),
            self.max_length is not None,
            self.truncation,
            self.advice,
        )

    def table_loader(self, table: Table) -> TableLoader:
        """Return held-out units batch by batch: as many in a forward pass as in training, and no more than prompts are answered at once."""
        assert self.trainer is not None
        size = min(self.evaluation.prompts_per_batch, self.microbatch_size or self.evaluation.prompts_per_batch)
        if self.max_tokens_per_microbatch is not None and len(table):
            size = max(1, min(size, self.max_tokens_per_microbatch // int(table.tokens().max())))
        return TableLoader(self.trainer, table, size, self.watch)

    @property
    def advice(self) -> str:
        """What to do where no example has a written response."""
        return "for files and datasets, set the source's response_column"

    @property
    def units(self) -> str:
        """What messages call the units, in the plural."""
        raise TypeError(f"{type(self).__name__} must define units")

    @property
    def table(self) -> Table:
        """What is trained on; there from `setup` on."""
        raise TypeError(f"{type(self).__name__} must define table")

    def record(self) -> dict[str, object]:
        """Return what may not change between a checkpoint and a run that goes on from it."""
        return super().record() | {"data.init_args.batch_size": self.batch_size}

    def digests(self) -> dict[str, str]:
        """Return what training learns from, in words → its hash; the table too."""
        return super().digests() | {f"what the {self.units} are made of": self.table.digest()}

    def setup(self, stage: str) -> None:
        """Check sizes, then set up prompts and rewards."""
        if stage == "fit":
            share = share_of_rank(self.batch_size, data_parallel_size(self.run))
            if self.max_tokens_per_microbatch is None:
                self.sizes = accumulate(self.run, equal_cuts(share, self.microbatch_size))
        super().setup(stage)

    def check_size(self) -> None:
        """Take a table that fills no step as one step, say what an epoch leaves out, and cut steps by tokens if that is wanted.

        Raises:
            UserError: for fewer units than ranks, or than a microbatch on each.
        """
        assert self.trainer is not None
        if len(self.table) < self.batch_size:
            self._shrink(data_parallel_size(self.trainer) * (self.microbatch_size or 1))
        if self.max_tokens_per_microbatch is not None:
            share = share_of_rank(self.batch_size, data_parallel_size(self.trainer))
            passes = table_passes(self.max_tokens_per_microbatch, share, self.table.tokens(), self.units)
            self.sizes = accumulate(self.trainer, StepSizes(share, None, passes))
        refuse_partial_epochs(self.trainer, self.microbatches_per_epoch())
        left = len(self.table) % self.batch_size
        if left:
            log.info(
                "%d of %d %s fill no step and are left out of an epoch, others in each",
                left,
                len(self.table),
                self.units,
            )

    def _shrink(self, unit: int) -> None:
        """Make a step of what is there, in whole units of so many."""
        assert self.trainer is not None
        there = len(self.table)
        if there < unit:
            raise UserError(
                f"batch_size={self.batch_size} but there are only {there} {self.units}, fewer than a microbatch on every rank ({unit})"
            )
        log.warning(
            "batch_size is %d, and there are %d %s: a step takes %d",
            self.batch_size,
            there,
            self.units,
            there - there % unit,
        )
        self.batch_size = there - there % unit
        share = share_of_rank(self.batch_size, data_parallel_size(self.trainer))
        self.trainer.accumulate_grad_batches = 1
        self.sizes = accumulate(self.trainer, equal_cuts(share, self.microbatch_size))

    def steps_per_epoch(self) -> int:
        """Return the number of optimizer steps in an epoch."""
        return len(self.table) // self.batch_size

    def microbatches_per_epoch(self) -> int:
        """Return the number of forward passes in an epoch on each rank."""
        return self.steps_per_epoch() * self.sizes.accumulate

    def epoch(self, number: int, state: dict[str, object] | None) -> OfflineEpoch:
        """Return the units in the order of epoch `number`; it needs no other state."""
        return OfflineEpoch(self, number)

    def describe(self) -> dict[str, str]:
        """Return the lines of the run card that speak of the data."""
        tokens = self.batch_size * self.table.mean_length
        return super().describe() | {
            "update": f"{self.batch_size} {self.units} (about {tokens:,.0f} tokens) in {self.sizes.accumulate} "
            f"microbatch(es){bound_line(self.max_tokens_per_microbatch)}, {self.steps_per_epoch():,} an epoch"
        }


class OfflineEpoch:
    """One pass over a table.

    Args:
        data: holds it.
        number: of the epoch, from 0; its order depends on nothing else but the seed.
    """

    def __init__(self, data: OfflineDataModule, number: int) -> None:
        self.data = data
        self.number = number
        assert data.trainer is not None
        ranks, rank = data_parallel_size(data.trainer), data_parallel_rank(data.trainer)
        order = permutation(len(data.table), data.seed, number)
        # (steps, batch_size): a rank has adjacent columns.
        steps = order[: data.steps_per_epoch() * data.batch_size].view(-1, data.batch_size)
        self._steps = steps[:, rank * data.batch_size // ranks : (rank + 1) * data.batch_size // ranks]

    def microbatches(self, start: int) -> Iterator[Microbatch]:
        """Yield the microbatches from number `start` on."""
        table, sizes, module = self.data.table, self.data.sizes, self.data.module
        assert self.data.trainer is not None
        total = partial(sum_over_ranks, self.data.trainer)
        first, skip = divmod(start, sizes.accumulate)
        metrics = table.metrics if self.number == start == 0 else {}
        for units in self._steps[first:]:
            whole = table.batch(units)
            masks = [(whole.response_mask, whole.group_ids)]
            (weights,) = step_weights(masks, step_totals(masks, total), module.reduction, table.longest)
            # An optimizer step of 3 pairs, cut into microbatches of 2 and 1; the weights are cut by rows, at 2 × unit = 4:
            #   units            0     1     2
            #   rows (unit = 2)  c r   c r | c r        chosen, rejected
            unit = len(whole) // len(units)
            cut = sizes.cut(whole, torch.arange(len(whole)), unit)
            rows = (table.weight_scale(module.reduction) * weights).split([size * unit for size in cut])
            for part, chosen in list(enumerate(units.split(cut)))[skip:]:
                batch = table.batch(chosen, rows[part])
                yield replace(batch, ends_step=part + 1 == sizes.accumulate, metrics=metrics)
                metrics = {}
            skip = 0

    def state_dict(self) -> dict[str, object]:
        """Return nothing: an epoch follows from its number."""
        return {}

"""How a rollout, or a table, becomes optimizer steps: sizes, order, cuts and weights, as pure functions of a frozen layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rl_lightning.data.cuts import Stretches
from rl_lightning.functional import BatchTotals, Reduction, batch_totals, token_weights
from rl_lightning.functional.masking import Total
from rl_lightning.types import Rows


def permutation(count: int, *key: int) -> Tensor:
    """Return a random order of `count` things, (count,) long. It is a function of the key alone."""
    return torch.from_numpy(np.random.default_rng(list(key)).permutation(count))


@dataclass(frozen=True)
class Layout:
    """The groups of a rollout as optimizer steps × places.

    All groups of a rollout are numbered from 0 in the order of their prompts. An order of them is cut into `steps` rows; the
    places of a row are dealt to the ranks in turn. Rank 0 of 2 has the columns marked with ·:

                  place 0 ·  place 1   place 2 ·  place 3
        step 0       5          2         7          0
        step 1       3          6         1          4

    Args:
        groups: prompts in a rollout, over all ranks.
        group_size: responses to each of them, G.
        steps: optimizer steps in one pass over the rollout; a divisor of `groups`.
        epochs: passes.
        rank, ranks: this data-parallel rank, and how many there are.
        seed: of all orders.
    """

    groups: int
    group_size: int
    steps: int
    epochs: int
    rank: int
    ranks: int
    seed: int

    @property
    def updates(self) -> int:
        """Optimizer steps that one rollout serves."""
        return self.epochs * self.steps

    def passes(self, sizes: StepSizes) -> int:
        """Return how many microbatches a rollout is trained with on each rank."""
        return self.updates * sizes.accumulate

    def dealt(self, order: Tensor) -> Tensor:
        """Return this rank's groups of an order of all, (groups / ranks,) long: an equal share of every optimizer step."""
        return order.view(self.steps, -1)[:, self.rank :: self.ranks].flatten()

    def first_order(self, number: int) -> Tensor:
        """Return the order of all groups in the first pass over rollout `number`, (groups,) long."""
        return permutation(self.groups, self.seed, number, 0)

    def rows(self, groups: Tensor) -> Tensor:
        """Return the row numbers of whole groups, (n × G,) long, for rows that stand group by group."""
        return (groups[:, None] * self.group_size + torch.arange(self.group_size)).flatten()

    def epoch_order(self, number: int, epoch: int, full: bool) -> Tensor:
        """Return all of this rank's rows in the order of one pass over rollout `number`.

        Args:
            number: of the rollout.
            epoch: of the pass, from 0. The rows stand in the order of the first pass.
            full: every group was filled, on all ranks. Then later passes permute each column of the layout: a column belongs
                to one rank, so no group changes rank, and a step is made of the same groups on any number of ranks. Otherwise
                what counts has been spread evenly, and whole steps are permuted.
        """
        table = torch.arange(self.groups // self.ranks).view(self.steps, -1)
        if epoch and full:
            places = range(self.rank, table.shape[1] * self.ranks, self.ranks)
            order = torch.stack([permutation(self.steps, self.seed, number, epoch, place) for place in places], 1)
            table = table.gather(0, order)
        elif epoch:
            table = table[permutation(self.steps, self.seed, number, epoch)]
        return self.rows(table.flatten())


@dataclass(frozen=True)
class StepSizes:
    """How one optimizer step is cut into microbatches.

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


def step_totals(steps: Sequence[tuple[Tensor, Tensor]], total: Total) -> list[BatchTotals]:
    """Count what optimizer steps are made of over all ranks, with one exchange.

    Args:
        steps: the response mask (b, R) and group ids (b,) of this rank's whole share of each optimizer step.
        total: adds sums up over the ranks; every rank must call this with as many steps.
    """
    counted = torch.stack([torch.stack(batch_totals(mask, groups)) for mask, groups in steps])
    return [BatchTotals(*totals) for totals in total(counted)]


def step_weights(
    steps: Sequence[tuple[Tensor, Tensor]], totals: Sequence[BatchTotals], reduction: Reduction, max_length: int | None
) -> list[Tensor]:
    """Return the token weights of some optimizer steps, a (b, R) float64 tensor a step.

    Args:
        steps: see `step_totals`.
        totals: of the steps, over all ranks.
        reduction, max_length: see `token_weights`.
    """
    return [
        token_weights(mask, groups, reduction, BatchTotals(*(count.clamp(min=1) for count in counts)), max_length)
        for (mask, groups), counts in zip(steps, totals, strict=True)
    ]

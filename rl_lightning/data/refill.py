"""A rollout from which callbacks drop groups: sampled chunk after chunk until it is full, the same on any number of ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from rl_lightning.data.steps import Layout
from rl_lightning.data.supply import Filled, Filling, Supply
from rl_lightning.functional import known_or
from rl_lightning.hooks import Refill
from rl_lightning.measures import merged
from rl_lightning.padding import stacked
from rl_lightning.strategies import from_every_rank
from rl_lightning.types import Rollout

ValueT = TypeVar("ValueT")


@dataclass
class Tally:
    """What was sampled for a rollout, in groups over all ranks."""

    chunks: int = 0
    prompts: int = 0
    kept: int = 0
    all_right: int = 0
    all_wrong: int = 0

    def __str__(self) -> str:
        return (
            f"of {self.prompts} prompts in {self.chunks} chunk(s) the samples of {self.all_right} were all right and of "
            f"{self.all_wrong} all wrong, {self.kept} groups were kept"
        )


class Refilling(Filling):
    """A rollout that is being filled up with the groups that callbacks keep.

    Every rank samples an equal share of a chunk. The kept groups of all ranks go to every rank, in the order of their
    prompts; at the end each rank takes its own.

    Args:
        layout, number, supply: see `Filling`. The surplus of earlier rollouts comes first.
        refill: how far to go.
        available: training prompts that there are.
        pad_id: fills up rows of token ids.
    """

    def __init__(
        self, layout: Layout, number: int, supply: Supply, refill: Refill, available: int, pad_id: int
    ) -> None:
        super().__init__(layout, number, supply)
        self.refill = refill
        self.available = available
        self.pad_id = pad_id
        self.tally = Tally()
        self._kept: list[Rollout] = [] if supply.surplus is None else [supply.surplus]  # of all ranks
        self._dropped: list[Rollout] = []

    @property
    def chunk(self) -> int:
        """Prompts that are sampled at a time, over all ranks."""
        return self.refill.prompts_per_chunk or self.layout.groups

    @property
    def cursor(self) -> int:
        """Prompts sampled in the run so far."""
        return self.supply.cursor + self.tally.prompts

    def needs_more(self) -> bool:
        """Tell whether another chunk is to be sampled: there are too few groups, and it is worth a try."""
        missing = sum(map(len, self._kept)) < self.layout.groups * self.layout.group_size
        exhausted = self.tally.chunks >= self.refill.max_chunks or self.tally.prompts >= self.available
        return missing and not exhausted

    def numbers(self) -> list[int]:
        """Return the prompts of this rank's share of the next chunk: see `Filling.numbers`."""
        share = self.chunk // self.layout.ranks
        first = self.cursor + self.layout.rank * share
        return list(range(first, first + share))

    def add(self, part: Rollout, kept: Tensor) -> None:
        """Take this rank's share of a chunk, and give its kept groups to all ranks."""
        keep = kept.cpu()
        part = replace(part, sampled_in=torch.full_like(part.group_ids, self.number)).to("cpu")
        scored, correct = (votes.view(-1, self.layout.group_size)[:, 0] for votes in part.votes())
        self._own.append(part)
        self._dropped.append(part.select((~keep).nonzero()[:, 0]))
        right, wrong = (scored > 0) & (correct == scored), (scored > 0) & (correct == 0)
        counts = {"all_right": int(right.sum()), "all_wrong": int(wrong.sum())}
        chosen = part.select(keep.nonzero()[:, 0])
        self.tally.chunks += 1
        self.tally.prompts += self.chunk
        for rollout, theirs in self._everywhere((chosen, counts)):
            self._kept.append(rollout)
            self.tally.kept += len(rollout) // self.layout.group_size
            self.tally.all_right += theirs["all_right"]
            self.tally.all_wrong += theirs["all_wrong"]

    def end(self) -> Filled:
        """Return the rollout: the surplus of earlier ones first, then what was kept, in the order of the prompts."""
        wanted = self.layout.groups * self.layout.group_size
        kept = joined(self._kept, self.pad_id) if self._kept else None
        there = 0 if kept is None else len(kept)
        rest, shortage = None, None
        if kept is not None and there >= wanted:
            rollout, rest = kept.select(torch.arange(wanted)), kept.select(torch.arange(wanted, there))
        else:
            fillers = fillers_for(wanted - there, self._dropped, self._everywhere, self.pad_id)
            rollout = joined([*([] if kept is None else [kept]), fillers], self.pad_id)
            rollout = rollout if self.refill.on_exhaustion == "smaller" else blank(rollout)
            shortage = self._shortage(there // self.layout.group_size)
        surplus = replace(rest, metrics={}) if rest and self.refill.surplus == "keep" else None
        assert rollout.sampled_in is not None
        stale = int((rollout.sampled_in < self.number).sum()) // self.layout.group_size
        counts = groups_that_count(rollout, self.layout.group_size)
        order = spread(self.layout.first_order(self.number), counts, self.layout.steps)
        return Filled(
            rollout.select(self.layout.rows(self.layout.dealt(order))),
            joined(self._own, self.pad_id) if self._own else None,
            Supply(self.cursor, surplus),
            stale,
            shortage,
            self._metrics(stale, surplus),
        )

    def _shortage(self, there: int) -> str:
        """Return why the rollout has so few groups, and what follows."""
        smaller = f"training on {there} of {self.layout.groups} groups"
        then = {"smaller": smaller, "skip": "skipping the rollout", "stop": "stopping the run"}
        return f"rollout {self.number + 1} cannot be filled: {self.tally}: {then[self.refill.on_exhaustion]}"

    def _metrics(self, stale: int, surplus: Rollout | None) -> dict[str, float]:
        waiting = 0 if surplus is None else len(surplus.group_ids.unique())
        kept = {"rollout/kept_fraction": self.tally.kept / self.tally.prompts} if self.tally.prompts else {}
        return {
            "rollout/chunks": float(self.tally.chunks),
            **kept,
            "rollout/surplus": float(waiting),
            "rollout/stale_fraction": stale / self.layout.groups,
        }

    def _everywhere(self, value: ValueT) -> list[ValueT]:
        """Return a value of every data-parallel rank, by rank."""
        values = from_every_rank(value)
        return values[:: len(values) // self.layout.ranks]


def fillers_for(
    missing: int, dropped: Sequence[Rollout], everywhere: Callable[[Rollout], list[Rollout]], pad_id: int
) -> Rollout:
    """Return so many rows of dropped groups, of all ranks, that count nowhere: they keep a rollout at its size.

    Args:
        missing: rows.
        dropped: rows of this rank's dropped groups.
        everywhere: returns a value of every rank, by rank.
        pad_id: fills up rows of token ids.
    """
    spare = joined(dropped, pad_id)
    fillers = joined(everywhere(spare.select(torch.arange(min(missing, len(spare))))), pad_id)
    return blank(fillers.select(torch.arange(missing)))


def joined(parts: Sequence[Rollout], pad_id: int) -> Rollout:
    """Stack rollouts; their metrics are those of all of them."""
    return replace(stacked(parts, pad_id), metrics=merged([part.metrics for part in parts]))


def blank(rollout: Rollout) -> Rollout:
    """Return rows that count nowhere: in no numerator, no denominator and no mean of rewards, like rows whose reward failed."""
    nothing = torch.full_like(rollout.rewards, torch.nan)
    mask = torch.zeros_like(rollout.response_mask)
    return replace(rollout, response_mask=mask, raw_rewards=nothing, rewards=nothing.clone())


def groups_that_count(rollout: Rollout, group_size: int) -> Tensor:
    """Return which groups have a token that counts, (groups,) bool, for rows that stand group by group."""
    return rollout.response_mask.any(1).view(-1, group_size).any(1)


def spread(order: Tensor, counts: Tensor, steps: int) -> Tensor:
    """Return an order in which what counts is dealt out evenly over equal steps; the same order if everything counts.

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


def logprobs_when_sampled(rollout: Rollout, number: int) -> Tensor:
    """Return log π_old, (B, R), for rollout `number` in which groups waited since an earlier one.

    Theirs is of the policy that sampled them, as the sampler reported it: the present one is not what they came from. A token
    for which it reported none has the present policy's.
    """
    assert rollout.sampled_in is not None and rollout.old_logprobs is not None
    waited = (rollout.sampled_in < number).unsqueeze(1) & rollout.response_attention
    return torch.where(waited, known_or(rollout.rollout_logprobs, rollout.old_logprobs), rollout.old_logprobs)

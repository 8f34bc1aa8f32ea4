"""Filling a rollout with the groups that callbacks keep: chunk after chunk, the same on every number of ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from rl_lightning.data.steps import Layout
from rl_lightning.hooks import Refill
from rl_lightning.measures import merged
from rl_lightning.strategies import from_every_rank
from rl_lightning.types import Rollout


@dataclass(frozen=True)
class Supply:
    """Where sampling is over the whole run; every rank has the same.

    Args:
        cursor: prompts sampled so far, over all ranks; names prompts and random streams.
        surplus: kept groups that no rollout had room for, in the order of their prompts, on the CPU.
    """

    cursor: int = 0
    surplus: Rollout | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return plain tensors, numbers and strings."""
        return {"cursor": self.cursor, "surplus": None if self.surplus is None else self.surplus.state_dict()}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Supply:
        """Return the supply that gave this state."""
        surplus = state["surplus"]
        return cls(state["cursor"], None if surplus is None else Rollout.from_state_dict(surplus))


@dataclass
class Tally:
    """What was sampled for a rollout, in groups over all ranks."""

    chunks: int = 0
    prompts: int = 0
    kept: int = 0
    all_right: int = 0
    all_wrong: int = 0


@dataclass
class Filled:
    """A rollout that has as many groups as it needs.

    Args:
        rollout: this rank's rows in the order of the first epoch.
        sampled: everything that this rank sampled for it, dropped groups included; None if the surplus was enough.
        supply: what the next rollout begins with.
        stale: groups of the whole rollout, over all ranks, that waited since an earlier one.
        shortage: why it could not be filled; None if it was.
        metrics: what the loggers see of how it was filled; nothing where no callback can drop a group.
    """

    rollout: Rollout
    sampled: Rollout | None
    supply: Supply
    stale: int = 0
    shortage: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass
class Filling:
    """A rollout that is being filled.

        filling = Filling(...)
        while filling.needs_more():
            part = ...the scored responses to the prompts filling.numbers()...
            filling.add(part, ...which of its rows are kept...)
        filled = filling.end()

    Args:
        layout: the groups of the rollout.
        number: of the rollout in the run, from 0.
        supply: what it begins with.
        refill: how far to go when callbacks drop groups; None where no callback can. Then there is a single chunk, every rank
            samples the groups that it will train on, and no row travels from rank to rank.
        available: training prompts that there are.
        pad_id: fills up rows of token ids.
    """

    layout: Layout
    number: int
    supply: Supply
    refill: Refill | None
    available: int
    pad_id: int
    tally: Tally = field(default_factory=Tally)
    _kept: list[Rollout] = field(default_factory=list)  # of all ranks, in the order of their prompts
    _own: list[Rollout] = field(default_factory=list)
    _dropped: list[Rollout] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.supply.surplus is not None:
            self._kept.append(self.supply.surplus)

    @property
    def chunk(self) -> int:
        """Prompts that are sampled at a time, over all ranks."""
        return (self.refill and self.refill.prompts_per_chunk) or self.layout.groups

    @property
    def cursor(self) -> int:
        """Prompts sampled in the run so far."""
        return self.supply.cursor + self.tally.prompts

    def needs_more(self) -> bool:
        """Tell whether another chunk is to be sampled: there are too few groups, and it is worth a try."""
        if self.refill is None:
            return not self._own
        missing = sum(map(len, self._kept)) < self.layout.groups * self.layout.group_size
        exhausted = self.tally.chunks >= self.refill.max_chunks or self.tally.prompts >= self.available
        return missing and not exhausted

    def numbers(self) -> list[int]:
        """Return the prompts of this rank's share of the next chunk, by their number over the whole run, in the order of the rows
        that `add` is given."""
        if self.refill is None:
            return [self.cursor + group for group in self.layout.dealt(self.layout.first_order(self.number)).tolist()]
        share = self.chunk // self.layout.ranks
        first = self.cursor + self.layout.rank * share
        return list(range(first, first + share))

    def add(self, part: Rollout, kept: Tensor) -> None:
        """Take this rank's share of a chunk.

        Args:
            part: the scored responses.
            kept: (B,) bool; which rows to train on, the same for all rows of a group.
        """
        self.tally.chunks += 1
        self.tally.prompts += self.chunk
        if self.refill is None:
            self._own.append(part)
            return
        keep = kept.cpu()
        part = replace(part, sampled_in=torch.full_like(part.group_ids, self.number)).to("cpu")
        scored, correct = (votes.view(-1, self.layout.group_size)[:, 0] for votes in part.votes())
        self._own.append(part)
        self._dropped.append(part.select((~keep).nonzero()[:, 0]))
        right, wrong = (scored > 0) & (correct == scored), (scored > 0) & (correct == 0)
        counts = {"all_right": int(right.sum()), "all_wrong": int(wrong.sum())}
        chosen = part.select(keep.nonzero()[:, 0])
        for state, theirs in self._everywhere((chosen.state_dict(), counts)):
            rollout = Rollout.from_state_dict(state)
            self._kept.append(rollout)
            self.tally.kept += len(rollout) // self.layout.group_size
            self.tally.all_right += theirs["all_right"]
            self.tally.all_wrong += theirs["all_wrong"]

    def end(self) -> Filled:
        """Return the rollout: the surplus of earlier ones first, then what was kept, in the order of the prompts."""
        if self.refill is None:
            (rollout,) = self._own
            return Filled(rollout, rollout, Supply(self.cursor))
        wanted = self.layout.groups * self.layout.group_size
        kept = self._join(self._kept) if self._kept else None
        shortage = None
        if kept is not None and len(kept) >= wanted:
            rollout, rest = kept.select(torch.arange(wanted)), kept.select(torch.arange(wanted, len(kept)))
        else:
            rollout, rest = self._padded(kept, wanted), None
            shortage = self._shortage(0 if kept is None else len(kept) // self.layout.group_size)
        surplus = replace(rest, metrics={}) if rest and self.refill.surplus == "keep" else None
        assert rollout.sampled_in is not None
        stale = int((rollout.sampled_in < self.number).sum()) // self.layout.group_size
        order = self.layout.first_order(self.number, groups_that_count(rollout, self.layout.group_size))
        return Filled(
            rollout.select(self.layout.rows(self.layout.dealt(order))),
            self._join(self._own) if self._own else None,
            Supply(self.cursor, surplus),
            stale,
            shortage,
            self._metrics(stale, surplus),
        )

    def _padded(self, kept: Rollout | None, wanted: int) -> Rollout:
        """Return what is kept, filled up to the size of a rollout with dropped groups that count nowhere."""
        assert self.refill is not None
        missing = wanted - (0 if kept is None else len(kept))
        spare = self._join(self._dropped)
        states = self._everywhere(spare.select(torch.arange(min(missing, len(spare)))).state_dict())
        fillers = self._join([Rollout.from_state_dict(state) for state in states]).select(torch.arange(missing))
        whole = self._join([*([kept] if kept is not None else []), blank(fillers)])
        return whole if self.refill.on_exhaustion == "smaller" else blank(whole)

    def _shortage(self, there: int) -> str:
        """Return why a rollout of so many groups is not full, and what follows."""
        assert self.refill is not None
        then = {
            "smaller": f"training on {there} of {self.layout.groups} groups",
            "skip": "skipping the rollout",
            "stop": "stopping the run",
        }
        tally = self.tally
        return (
            f"rollout {self.number} cannot be filled: of {tally.prompts} prompts in {tally.chunks} chunk(s) the samples of "
            f"{tally.all_right} were all right and of {tally.all_wrong} all wrong, {tally.kept} groups were kept: "
            f"{then[self.refill.on_exhaustion]}"
        )

    def _metrics(self, stale: int, surplus: Rollout | None) -> dict[str, float]:
        waiting = 0 if surplus is None else len(surplus.group_ids.unique())
        kept = {"rollout/kept_fraction": self.tally.kept / self.tally.prompts} if self.tally.prompts else {}
        return {
            "rollout/chunks": float(self.tally.chunks),
            **kept,
            "rollout/surplus": float(waiting),
            "rollout/stale_fraction": stale / self.layout.groups,
        }

    def _everywhere(self, value: Any) -> list[Any]:
        """Return a value of every data-parallel rank, by rank."""
        values = from_every_rank(value)
        return values[:: len(values) // self.layout.ranks]

    def _join(self, parts: Sequence[Rollout]) -> Rollout:
        """Stack rollouts; their metrics are those of all of them."""
        joined = Rollout.concatenate(parts, self.pad_id)
        return replace(joined, metrics=merged([part.metrics for part in parts]))


def blank(rollout: Rollout) -> Rollout:
    """Return rows that count nowhere: in no numerator, no denominator and no mean of rewards, like rows whose reward failed."""
    nothing = torch.full_like(rollout.rewards, torch.nan)
    mask = torch.zeros_like(rollout.response_mask)
    return replace(rollout, response_mask=mask, raw_rewards=nothing, rewards=nothing.clone())


def groups_that_count(rollout: Rollout, group_size: int) -> Tensor:
    """Return which groups have a token that counts, (groups,) bool, for rows that stand group by group."""
    return rollout.response_mask.any(1).view(-1, group_size).any(1)

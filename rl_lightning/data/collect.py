"""Filling a rollout with the groups that callbacks keep: chunk after chunk, the same on every number of ranks."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rl_lightning.data.loader import permutation, spread
from rl_lightning.errors import UserError
from rl_lightning.hooks import Refill, RolloutCallback
from rl_lightning.measures import merged
from rl_lightning.strategies import data_parallel_rank, data_parallel_size, from_every_rank
from rl_lightning.types import Rollout

if TYPE_CHECKING:
    from rl_lightning.data.rollout import RolloutDataModule

log = logging.getLogger(__name__)


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
        """Undo `state_dict`."""
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

    def metrics(self) -> dict[str, float]:
        """Return what the loggers see of it."""
        kept = {"rollout/kept_fraction": self.kept / self.prompts} if self.prompts else {}
        return {"rollout/chunks": float(self.chunks), **kept}


@dataclass
class Filled:
    """A rollout that was filled up.

    Args:
        rollout: this rank's rows in the order of the first epoch, on the CPU.
        sampled: everything that this rank sampled for it, dropped groups included; None if the surplus was enough.
        stale: groups of the whole rollout, over all ranks, that waited since an earlier one.
        supply: what the next rollout begins with.
        tally: what all ranks sampled.
        stop: the rollout could not be filled, and the run should end.
    """

    rollout: Rollout
    sampled: Rollout | None
    stale: int
    supply: Supply
    tally: Tally
    stop: bool = False

    def metrics(self, groups: int) -> dict[str, float]:
        """Return what the loggers see of it, for a rollout of so many groups."""
        waiting = 0 if self.supply.surplus is None else len(self.supply.surplus.group_ids.unique())
        own = {"rollout/surplus": float(waiting), "rollout/stale_fraction": self.stale / groups}
        return self.tally.metrics() | own


@dataclass
class Collector:
    """Samples chunks of prompts until a rollout is full.

    Args:
        data: samples; its sizes and ranks.
        number: of the rollout in the run.
        refill: how far to go.
    """

    data: RolloutDataModule
    number: int
    refill: Refill
    tally: Tally = field(default_factory=Tally)
    _kept: list[Rollout] = field(default_factory=list)
    _own: list[Rollout] = field(default_factory=list)
    _dropped: list[Rollout] = field(default_factory=list)

    def fill(self, supply: Supply) -> Filled:
        """Return the next rollout: the surplus, then as many chunks as it takes."""
        size, cursor = self.data.group_size, supply.cursor
        wanted = self.data.prompts_per_rollout * size
        chunk = self.refill.prompts_per_chunk or self.data.prompts_per_rollout
        if supply.surplus is not None:
            self._kept.append(supply.surplus)
        while sum(map(len, self._kept)) < wanted and not self._is_exhausted():
            self._sample(cursor, chunk)
            cursor += chunk
        kept = self._join(self._kept) if self._kept else None
        full = kept is not None and len(kept) >= wanted
        if full:
            assert kept is not None
            rollout, rest = kept.select(torch.arange(wanted)), kept.select(torch.arange(wanted, len(kept)))
        else:
            rollout, rest = self._exhausted(kept, wanted), None
        surplus = replace(rest, metrics={}) if rest and self.refill.surplus == "keep" else None
        assert rollout.sampled_in is not None
        stale = int((rollout.sampled_in < self.number).sum()) // size
        return Filled(
            rollout=self._deal(rollout),
            sampled=self._join(self._own) if self._own else None,
            stale=stale,
            supply=Supply(cursor, surplus),
            tally=self.tally,
            stop=not full and self.refill.on_exhaustion == "stop",
        )

    def _is_exhausted(self) -> bool:
        """Tell whether to give up: often enough, or every prompt that there is had its chance."""
        return self.tally.chunks >= self.refill.max_chunks or self.tally.prompts >= self.data.train_prompts

    def _sample(self, cursor: int, chunk: int) -> None:
        """Sample and judge a chunk, and take its kept groups from every rank, in the order of their prompts."""
        assert self.data.trainer is not None
        rank, share = data_parallel_rank(self.data.trainer), chunk // data_parallel_size(self.data.trainer)
        part = self.data.sample(range(cursor + rank * share, cursor + (rank + 1) * share))
        part = self.data.reward(part)
        keep = self.data.keep(part).cpu()
        part = replace(part, sampled_in=torch.full_like(part.group_ids, self.number)).to("cpu")
        scored, correct = (votes.view(-1, self.data.group_size)[:, 0] for votes in part.votes())
        self._own.append(part)
        self._dropped.append(part.select((~keep).nonzero()[:, 0]))
        right, wrong = (scored > 0) & (correct == scored), (scored > 0) & (correct == 0)
        counts = {"all_right": int(right.sum()), "all_wrong": int(wrong.sum())}
        chosen = part.select(keep.nonzero()[:, 0])
        self.tally.chunks += 1
        self.tally.prompts += chunk
        for state, theirs in self._everywhere((chosen.state_dict(), counts)):
            rollout = Rollout.from_state_dict(state)
            self._kept.append(rollout)
            self.tally.kept += len(rollout) // self.data.group_size
            self.tally.all_right += theirs["all_right"]
            self.tally.all_wrong += theirs["all_wrong"]

    def _exhausted(self, kept: Rollout | None, wanted: int) -> Rollout:
        """Warn, and return what is kept, filled up to the size of a rollout with dropped groups that count nowhere."""
        size, data = self.data.group_size, self.data
        missing = wanted - (0 if kept is None else len(kept))
        there = wanted // size - missing // size
        policy = self.refill.on_exhaustion
        then = {"smaller": f"training on {there} of {wanted // size} groups", "skip": "skipping the rollout"}
        assert data.trainer is not None
        if data.trainer.is_global_zero:
            log.warning(
                "rollout %d cannot be filled: of %d prompts in %d chunk(s) the samples of %d were all right and of %d all wrong, "
                "%d groups were kept: %s",
                self.number, self.tally.prompts, self.tally.chunks, self.tally.all_right, self.tally.all_wrong,
                self.tally.kept, then.get(policy, "stopping the run"),
            )  # fmt: skip
        spare = self._join(self._dropped)
        states = self._everywhere(spare.select(torch.arange(min(missing, len(spare)))).state_dict())
        fillers = self._join([Rollout.from_state_dict(state) for state in states]).select(torch.arange(missing))
        whole = self._join([*([kept] if kept is not None else []), blank(fillers)])
        return whole if policy == "smaller" else blank(whole)

    def _deal(self, whole: Rollout) -> Rollout:
        """Return this rank's rows in the order of the first epoch: an equal share of every optimizer step."""
        data = self.data
        order = permutation(data.prompts_per_rollout, data.seed, self.number, 0)
        order = spread(order, groups_that_count(whole, data.group_size), data.steps_per_epoch)
        return whole.select(data.rows_of_groups(data.dealt(order)))

    def _everywhere(self, value: Any) -> list[Any]:
        """Return a value of every data-parallel rank, by rank."""
        assert self.data.trainer is not None
        values = from_every_rank(value)
        return values[:: len(values) // data_parallel_size(self.data.trainer)]

    def _join(self, parts: Sequence[Rollout]) -> Rollout:
        """Stack rollouts; their metrics are those of all of them."""
        joined = Rollout.concatenate(parts, self.data.module.policy_files.tokenizer.pad_token_id)
        return replace(joined, metrics=merged([part.metrics for part in parts]))


def blank(rollout: Rollout) -> Rollout:
    """Return rows that count nowhere: in no numerator, no denominator and no mean of rewards, like rows whose reward failed."""
    nothing = torch.full_like(rollout.rewards, torch.nan)
    mask = torch.zeros_like(rollout.response_mask)
    return replace(rollout, response_mask=mask, raw_rewards=nothing, rewards=nothing.clone())


def groups_that_count(rollout: Rollout, group_size: int) -> Tensor:
    """Return which groups have a token that counts, (groups,) bool, for rows that stand group by group."""
    return rollout.response_mask.any(1).view(-1, group_size).any(1)


def find_refill(callbacks: Sequence[RolloutCallback]) -> Refill | None:
    """Return how to fill up rollouts; None if no callback can drop a group, so that nobody needs to ask.

    Raises:
        UserError: if callbacks want different things.
    """
    refills = {callback.refill for callback in callbacks if callback.refill is not None}
    if len(refills) > 1:
        raise UserError("several callbacks say how to fill up a rollout, in different ways: keep one DynamicSampling")
    drops = any(type(callback).keep_groups is not RolloutCallback.keep_groups for callback in callbacks)
    return next(iter(refills), Refill()) if drops else None

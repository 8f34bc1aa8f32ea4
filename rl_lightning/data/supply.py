"""Where sampling is over the whole run, and how the groups of one rollout are gathered."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from rl_lightning.data.steps import Layout
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

    def state_dict(self) -> dict[str, object]:
        """Return plain tensors, numbers and strings."""
        return {"cursor": self.cursor, "surplus": None if self.surplus is None else self.surplus.state_dict()}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Supply:
        """Return a supply from what `state_dict` returned, of this process or another."""
        surplus = state["surplus"]
        return cls(state["cursor"], None if surplus is None else Rollout.from_state_dict(surplus))


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


class Filling:
    """A rollout that is being filled, where no callback can drop a group: a single chunk is enough.

    Every rank samples the groups that it will train on, and no row travels from rank to rank. See
    `rl_lightning.data.refill.Refilling` for a rollout that takes several chunks.

        filling = Filling(...)
        while filling.needs_more():
            part = ...the scored responses to the prompts filling.numbers()...
            filling.add(part, ...which of its rows are kept...)
        filled = filling.end()

    Args:
        layout: the groups of the rollout.
        number: of the rollout in the run, from 0.
        supply: what it begins with.
    """

    def __init__(self, layout: Layout, number: int, supply: Supply) -> None:
        self.layout = layout
        self.number = number
        self.supply = supply
        self._own: list[Rollout] = []

    def needs_more(self) -> bool:
        """Tell whether another chunk is to be sampled."""
        return not self._own

    def numbers(self) -> list[int]:
        """Return the prompts of this rank's share of the next chunk, by their number over the whole run, in the order of the rows
        that `add` is given."""
        groups = self.layout.dealt(self.layout.first_order(self.number))
        return [self.supply.cursor + group for group in groups.tolist()]

    def add(self, part: Rollout, kept: Tensor) -> None:
        """Take this rank's share of a chunk.

        Args:
            part: the scored responses.
            kept: (B,) bool; which rows to train on, the same for all rows of a group.
        """
        self._own.append(part)

    def end(self) -> Filled:
        """Return this rank's rows in the order of the first epoch, and where the next rollout begins."""
        (rollout,) = self._own
        return Filled(rollout, rollout, Supply(self.supply.cursor + self.layout.groups))

"""The callbacks that act on rollouts, stage by stage, and whether they fit the algorithm and the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from rl_lightning.errors import UserError
from rl_lightning.hooks import Learner, Refill, RolloutCallback
from rl_lightning.shapes import require
from rl_lightning.types import Rollout


@dataclass(frozen=True)
class Stages:
    """Runs the rollout callbacks of a trainer, each stage for all of them in their order.

    Args:
        trainer: has the callbacks.
    """

    trainer: Trainer

    @property
    def callbacks(self) -> list[RolloutCallback]:
        """The trainer's callbacks that see rollouts."""
        every = self.trainer.callbacks  # type: ignore[attr-defined]
        return [callback for callback in every if isinstance(callback, RolloutCallback)]

    def check(self, module: Learner) -> None:
        """Refuse to start without a callback that the algorithm relies on, or with one that cannot work.

        Raises:
            UserError: naming the callback.
        """
        supplied = {name for callback in self.callbacks for name in callback.supplies}
        for name, class_path in module.needs.items():
            if name not in supplied:
                raise UserError(
                    f"{type(module).__name__} needs {name}, which no callback supplies: add '- class_path: {class_path}' under "
                    "trainer.callbacks"
                )
        for callback in self.callbacks:
            for name in set(callback.supplies) & set(module.fills):
                raise UserError(
                    f"{type(module).__name__} computes {name} itself, and {type(callback).__name__} would overwrite them: take it "
                    "out of trainer.callbacks"
                )
            callback.check_settings(self.trainer)

    def refuse(self, stages: Sequence[str], reason: str) -> None:
        """Refuse callbacks that change stages of a rollout that some data do not have: they would do nothing in silence.

        Args:
            stages: names of methods of `RolloutCallback`.
            reason: goes on after the callback's name.

        Raises:
            UserError: naming the callback.
        """
        for callback in self.callbacks:
            changes = any(getattr(type(callback), stage) is not getattr(RolloutCallback, stage) for stage in stages)
            if changes and not callback.only_looks:
                raise UserError(f"{type(callback).__name__} {reason}: take it out of trainer.callbacks")

    def refill(self) -> Refill | None:
        """Return how to fill up rollouts; None if no callback can drop a group, so that nobody needs to ask.

        Raises:
            UserError: if callbacks want different things.
        """
        refills = {callback.refill for callback in self.callbacks if callback.refill is not None}
        if len(refills) > 1:
            raise UserError(
                "several callbacks say how to fill up a rollout, in different ways: keep one DynamicSampling"
            )
        drops = any(type(callback).keep_groups is not RolloutCallback.keep_groups for callback in self.callbacks)
        return next(iter(refills), Refill()) if drops else None

    # ------------------------------------------------------------------ stages

    def rewards(self, rollout: Rollout) -> None:
        """Let callbacks change `rollout.rewards`.

        Raises:
            UserError: naming a callback that leaves another shape than a rollout has.
        """
        for callback in self.callbacks:
            callback.on_rollout_rewards(self.trainer, self.trainer.lightning_module, rollout)
            _check_fields(callback, rollout)

    def keep(self, rollout: Rollout, group_size: int) -> Tensor:
        """Return the groups that every callback keeps, by row: (B,) bool.

        Raises:
            UserError: naming a callback that tells rows of a group apart, or says it in another shape.
        """
        kept = torch.ones(len(rollout), dtype=torch.bool, device=rollout.group_ids.device)
        for callback in self.callbacks:
            chosen = callback.keep_groups(self.trainer, self.trainer.lightning_module, rollout)
            if chosen is None:
                continue
            what = f"what {type(callback).__name__}.keep_groups returns"
            require(what, chosen, kept.shape, "one truth value a response", torch.bool)
            groups = chosen.view(-1, group_size)
            if not bool((groups == groups[:, :1]).all()):
                raise UserError(f"{type(callback).__name__}.keep_groups must treat all rows of a group alike")
            kept &= chosen
        return kept

    def advantages(self, rollout: Rollout) -> None:
        """Let callbacks fill in `rollout.advantages`.

        Raises:
            UserError: naming a callback that leaves another shape than a rollout has.
        """
        for callback in self.callbacks:
            callback.on_rollout_advantages(self.trainer, self.trainer.lightning_module, rollout)
            _check_fields(callback, rollout)

    def end(self, rollout: Rollout) -> None:
        """Let callbacks look at the finished rollout."""
        for callback in self.callbacks:
            callback.on_rollout_end(self.trainer, self.trainer.lightning_module, rollout)


def _check_fields(callback: RolloutCallback, rollout: Rollout) -> None:
    name, table = type(callback).__name__, rollout.response_attention.shape
    require(f"{name}: rollout.rewards", rollout.rewards, table[:1], "one number a response")
    mask = rollout.response_mask
    require(f"{name}: rollout.response_mask", mask, table, "one truth value a response token", torch.bool)
    for field in ("token_rewards", "advantages", "returns"):
        value = getattr(rollout, field)
        if value is not None:
            require(f"{name}: rollout.{field}", value, table, "one number a response token")

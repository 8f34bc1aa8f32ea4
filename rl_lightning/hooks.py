"""Where a callback can step into a rollout, and the stages that run the callbacks of a trainer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from rl_lightning.errors import UserError
from rl_lightning.learner import Learner
from rl_lightning.shapes import require
from rl_lightning.typed import Typed
from rl_lightning.types import Rollout


@dataclass
class Watch:
    """Hooks by which callbacks watch a DataModule at work and end a run cleanly; the callbacks set them.

    Args:
        on_progress: hook `f(done, total)`, called while responses are sampled. `RolloutProgressBar` sets it.
        on_boundary: stop hook `f(together)`. Raise from it to end the run cleanly. Called with True at step boundaries, where all
            ranks are, and with False while sampling.
        agreed: context in which every rank does the same, as often. A stop inside ends the run on all ranks or on none.
        abandonable: context `f(alone)` in which a stop may raise anywhere; with `alone`, only where the run has one rank.
    """

    on_progress: Callable[[int, int], None] | None = None
    on_boundary: Callable[[bool], None] = lambda together: None
    agreed: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext
    abandonable: Callable[[bool], contextlib.AbstractContextManager[object]] = contextlib.nullcontext

    def sampled(self, done: int, total: int) -> None:
        """Tell how many responses are finished, of all that are sampled now; the run may end here."""
        self.on_boundary(False)
        if self.on_progress is not None:
            self.on_progress(done, total)


@dataclass(frozen=True)
class Refill:
    """How a rollout is filled up when callbacks drop groups.

    Args:
        max_chunks: times that prompts are sampled for one rollout, at most.
        prompts_per_chunk: prompts sampled at a time, over all ranks; as many as the rollout has if null.
        surplus: kept groups beyond the rollout wait for the next one (`keep`) or are lost (`drop`).
        on_exhaustion: what happens to a rollout that cannot be filled; see `rl_lightning.callbacks.DynamicSampling`.
    """

    max_chunks: int = 10
    prompts_per_chunk: int | None = None
    surplus: Literal["keep", "drop"] = "keep"
    on_exhaustion: Literal["smaller", "skip", "stop"] = "smaller"


class StopCallback(Callback, metaclass=Typed):
    """A callback that may end a run in good order, where the data say that this is possible."""

    def listen(self, trainer: Trainer) -> None:
        """Put the callback into `trainer.datamodule.watch`. The DataModule calls this in set-up, before it samples."""


class RolloutCallback(Callback, metaclass=Typed):
    """A Lightning callback that also sees every rollout before it is trained on.

    The stages come in this order, each for all callbacks, so the order of callbacks in a YAML does not matter between
    stages: `on_rollout_rewards` and `keep_groups`, again and again until there are enough groups; then the policy scores
    the rollout; then `on_rollout_advantages`, `on_rollout_end`.

    What a stage adds to `rollout.metrics` is logged. On several ranks a number is averaged over them, unless it says otherwise:
    see `rl_lightning.measures`.
    """

    #: Fields of the rollout that this callback fills in; an algorithm that needs one is refused without it.
    supplies: ClassVar[tuple[str, ...]] = ()
    #: Whether it only looks and changes nothing: then it may stand beside data that have no rollouts, where it has nothing to do.
    only_looks: ClassVar[bool] = False
    #: How to fill the rollout up again after `keep_groups` dropped some; the defaults if no callback says.
    refill: Refill | None = None

    @property
    def trains_on(self) -> tuple[str, ...]:
        """Rewards at weight 0 that it makes a part of what is trained on, so that they verify nothing."""
        return ()

    def check_settings(self, trainer: Trainer) -> None:
        """Refuse settings that cannot work, by a `UserError`, before anything is read or sampled.

        `trainer.datamodule` is the rollout data; its sizes are known, its prompts are not read yet.
        """

    def on_rollout_rewards(self, trainer: Trainer, module: LightningModule, rollout: Rollout) -> None:
        """Change `rollout.rewards`, (B,)."""

    def keep_groups(self, trainer: Trainer, module: LightningModule, rollout: Rollout) -> Tensor | None:
        """Return which groups to train on, by row: (B,) bool, the same for all rows of a group; None for all of them."""
        return None

    def on_rollout_advantages(self, trainer: Trainer, module: LightningModule, rollout: Rollout) -> None:
        """Fill in `rollout.advantages`, (B, R), from `rollout.penalised_rewards`, or token by token from
        `module.token_rewards(rollout)`; a divergence that acts in the reward has been taken off either, once."""

    def on_rollout_end(self, trainer: Trainer, module: LightningModule, rollout: Rollout) -> None:
        """Look at the finished rollout; its metrics, numbers over all ranks by now, may still be added to."""


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

    @property
    def supplied(self) -> set[str]:
        """What callbacks fill in: fields of a rollout."""
        return {name for callback in self.callbacks for name in callback.supplies}

    def check(self, module: Learner) -> None:
        """Refuse to start without a callback that the algorithm relies on, or with one that cannot work.

        Raises:
            UserError: naming the callback.
        """
        supplied = self.supplied
        for name, class_path in module.needs.items():
            if name not in supplied:
                add = f"{class_path.rpartition('.')[2]}() to the Trainer's callbacks, in a YAML '- class_path: {class_path}'"
                raise UserError(f"{type(module).__name__} needs {name}, which no callback supplies: add {add}")
        for name in sorted(supplied):
            both = {f"{type(one)} {vars(one)}": type(one).__name__ for one in self.callbacks if name in one.supplies}
            if len(both) > 1:
                raise UserError(f"{' and '.join(both.values())} both supply {name}: keep one of these callbacks")
        for callback in self.callbacks:
            for name in set(callback.supplies) & set(module.fills):
                raise UserError(
                    f"{type(module).__name__} computes {name} itself, and {type(callback).__name__} would overwrite them: take it "
                    "out of the Trainer's callbacks"
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
                raise UserError(f"{type(callback).__name__} {reason}: take it out of the Trainer's callbacks")

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
                raise UserError(
                    f"{type(callback).__name__}.keep_groups must return one truth value for all rows of a group"
                )
            kept &= chosen
        return kept

    def advantages(self, rollout: Rollout) -> None:
        """Let callbacks fill in `rollout.advantages`.

        Raises:
            UserError: naming a callback that leaves another shape than a rollout has, or nothing though it supplies advantages.
        """
        for callback in self.callbacks:
            callback.on_rollout_advantages(self.trainer, self.trainer.lightning_module, rollout)
            _check_fields(callback, rollout, supplied="advantages" in callback.supplies)

    def end(self, rollout: Rollout) -> None:
        """Let callbacks look at the finished rollout."""
        for callback in self.callbacks:
            callback.on_rollout_end(self.trainer, self.trainer.lightning_module, rollout)


def _check_fields(callback: RolloutCallback, rollout: Rollout, supplied: bool = False) -> None:
    name, table = type(callback).__name__, rollout.response_attention.shape
    require(f"{name}: rollout.rewards", rollout.rewards, table[:1], "one number a response")
    mask = rollout.response_mask
    require(f"{name}: rollout.response_mask", mask, table, "one truth value a response token", torch.bool)
    for field in ("token_rewards", "advantages", "returns"):
        value = getattr(rollout, field)
        if value is not None or (supplied and field == "advantages"):
            require(f"{name}: rollout.{field}", value, table, "one number a response token")

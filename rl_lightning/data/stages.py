"""The callbacks that act on rollouts, and whether they fit the algorithm and the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Trainer

from rl_lightning.errors import UserError
from rl_lightning.hooks import RolloutCallback


def rollout_callbacks(trainer: Trainer) -> list[RolloutCallback]:
    """Return the trainer's callbacks that see rollouts, in their order."""
    return [callback for callback in trainer.callbacks if isinstance(callback, RolloutCallback)]  # type: ignore[attr-defined]


def check_callbacks(trainer: Trainer, module: Any) -> None:
    """Refuse to start without a callback that the algorithm relies on, or with one that cannot work.

    Raises:
        UserError: naming the callback.
    """
    callbacks = rollout_callbacks(trainer)
    supplied = {name for callback in callbacks for name in callback.supplies}
    for name, class_path in module.needs.items():
        if name not in supplied:
            raise UserError(
                f"{type(module).__name__} needs {name}, which no callback supplies: add '- class_path: {class_path}' under "
                "trainer.callbacks"
            )
    for callback in callbacks:
        for name in set(callback.supplies) & set(module.fills):
            raise UserError(
                f"{type(module).__name__} computes {name} itself, and {type(callback).__name__} would overwrite them: take it "
                "out of trainer.callbacks"
            )
        callback.check_settings(trainer)


def refuse_stages(trainer: Trainer, stages: Sequence[str], reason: str) -> None:
    """Refuse callbacks that act on stages of a rollout that some data do not have: they would do nothing in silence.

    Args:
        trainer: has the callbacks.
        stages: names of methods of `RolloutCallback`.
        reason: goes on after the callback's name.

    Raises:
        UserError: naming the callback.
    """
    for callback in rollout_callbacks(trainer):
        if any(getattr(type(callback), stage) is not getattr(RolloutCallback, stage) for stage in stages):
            raise UserError(f"{type(callback).__name__} {reason}: take it out of trainer.callbacks")

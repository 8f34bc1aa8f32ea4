"""The callbacks that act on rollouts, and whether they fit the algorithm and the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from rl_lightning.errors import UserError
from rl_lightning.hooks import RolloutCallback
from rl_lightning.shapes import require
from rl_lightning.types import Rollout


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


def change_rewards(trainer: Trainer, module: Any, rollout: Rollout) -> None:
    """Let callbacks change the rewards of a rollout.

    Raises:
        UserError: naming a callback that leaves another shape than a rollout has.
    """
    for callback in rollout_callbacks(trainer):
        callback.on_rollout_rewards(trainer, module, rollout)
        _check_fields(callback, rollout)


def make_advantages(trainer: Trainer, module: Any, rollout: Rollout) -> None:
    """Let callbacks fill in the advantages of a rollout.

    Raises:
        UserError: naming a callback that leaves another shape than a rollout has.
    """
    for callback in rollout_callbacks(trainer):
        callback.on_rollout_advantages(trainer, module, rollout)
        _check_fields(callback, rollout)


def _check_fields(callback: RolloutCallback, rollout: Rollout) -> None:
    name, table = type(callback).__name__, rollout.response_attention.shape
    require(f"{name}: rollout.rewards", rollout.rewards, table[:1], "one number a response")
    mask = rollout.response_mask
    require(f"{name}: rollout.response_mask", mask, table, "one truth value a response token", torch.bool)
    for field in ("token_rewards", "advantages", "returns"):
        value = getattr(rollout, field)
        if value is not None:
            require(f"{name}: rollout.{field}", value, table, "one number a response token")


def kept_groups(trainer: Trainer, module: Any, rollout: Rollout, group_size: int) -> Tensor:
    """Return the groups that every callback keeps, by row: (B,) bool.

    Raises:
        UserError: naming a callback that tells rows of a group apart, or says it in another shape.
    """
    kept = torch.ones(len(rollout), dtype=torch.bool, device=rollout.group_ids.device)
    for callback in rollout_callbacks(trainer):
        chosen = callback.keep_groups(trainer, module, rollout)
        if chosen is None:
            continue
        what = f"what {type(callback).__name__}.keep_groups returns"
        require(what, chosen, kept.shape, "one truth value a response", torch.bool)
        groups = chosen.view(-1, group_size)
        if not bool((groups == groups[:, :1]).all()):
            raise UserError(f"{type(callback).__name__}.keep_groups must treat all rows of a group alike")
        kept &= chosen
    return kept


def refuse_stages(trainer: Trainer, stages: Sequence[str], reason: str) -> None:
    """Refuse callbacks that change stages of a rollout that some data do not have: they would do nothing in silence.

    Args:
        trainer: has the callbacks.
        stages: names of methods of `RolloutCallback`.
        reason: goes on after the callback's name.

    Raises:
        UserError: naming the callback.
    """
    for callback in rollout_callbacks(trainer):
        if callback.only_looks:
            continue
        if any(getattr(type(callback), stage) is not getattr(RolloutCallback, stage) for stage in stages):
            raise UserError(f"{type(callback).__name__} {reason}: take it out of trainer.callbacks")

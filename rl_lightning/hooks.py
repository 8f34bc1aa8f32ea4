"""Where a callback can step into a rollout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from rl_lightning.types import Rollout


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


class StopCallback(Callback):
    """A callback that may end a run in good order, where the data say that this is possible."""

    def listen(self, trainer: Trainer) -> None:
        """Put itself into the `on_boundary`, `agreed` and `abandonable` of `trainer.datamodule`, which calls this before it
        begins to sample in set-up."""


class RolloutCallback(Callback):
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

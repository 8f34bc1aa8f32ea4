"""Where a callback can step into a rollout."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from rl_lightning.functional import Reduction
from rl_lightning.models import PolicyFiles
from rl_lightning.types import Microbatch, Rollout, Rows


class Learner(Protocol):
    """What DataModules ask of the algorithm that they serve."""

    #: The files of the policy: its tokenizer, config and context length.
    policy_files: PolicyFiles
    #: What training steps must be given: `rollouts`, `demonstrations`, `samples` or `preferences`; None for whatever there is.
    learns_from: str | None
    #: What held-out data are: sampled and scored `responses`, or `preferences`.
    evaluates_on: ClassVar[str]
    #: Fields of a rollout that a callback must supply → the callback to add when none does.
    needs: ClassVar[Mapping[str, str]]
    #: Fields of a rollout that the module fills in itself; a callback that would overwrite them is refused.
    fills: ClassVar[tuple[str, ...]]
    #: Whether training data must bring log-probabilities of a frozen reference, that of `reference_files`.
    wants_reference: ClassVar[bool]
    #: How tokens are averaged in the loss.
    reduction: Reduction

    @property
    def device(self) -> torch.device:
        """Where the models are."""

    def total(self, sums: Tensor) -> Tensor:
        """Return sums of this rank's rows as those of all ranks; every rank must call it."""


class PolicyLearner(Learner, Protocol):
    """What DataModules ask of an algorithm with a policy that can be sampled."""

    policy: nn.Module

    @property
    def learns_from_zero_advantages(self) -> bool:
        """Whether a response may have a gradient though all of its advantages are 0."""

    def rollout_mode(self) -> contextlib.AbstractContextManager[None]:
        """Return the context in which the policy is sampled, and rollouts are scored."""

    def logprobs(self, batch: Rows, model: nn.Module | None = None) -> Tensor:
        """Return the log-probabilities of the response tokens, (B, R) in nats, of the policy or of another model."""

    def score(self, batch: Microbatch, single_update: bool) -> dict[str, Tensor]:
        """Return what must be known of a rollout before the policy changes: names of `Rollout` fields → (B, R) or (B,)."""

    def on_rollout_scored(self, rollout: Rollout) -> None:
        """Fill in what follows from the scores of a rollout."""


class ReferenceLearner(PolicyLearner, Protocol):
    """What DataModules ask of an algorithm that compares stored responses with a frozen reference."""

    reference_files: PolicyFiles


@dataclass
class Watch:
    """How callbacks watch a DataModule at work, and end a run in good order. They put themselves here.

    Args:
        on_progress: hook `f(done, total)`, called while responses are sampled. `RolloutProgressBar` sets it.
        on_boundary: stop hook `f(together)`. Raise from it to end the run cleanly. Called with True at step boundaries, where all
            ranks are, and with False while sampling.
        agreed: context in which every rank does the same, as often. A stop inside ends the run on all ranks or on none.
        abandonable: context `f(alone)` in which a stop may raise anywhere, for a reward may hang there. With `alone`, it may
            only where the run has a single rank.
    """

    on_progress: Callable[[int, int], None] | None = None
    on_boundary: Callable[[bool], None] = lambda together: None
    agreed: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    abandonable: Callable[[bool], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext

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


class StopCallback(Callback):
    """A callback that may end a run in good order, where the data say that this is possible."""

    def listen(self, trainer: Trainer) -> None:
        """Put the callback into the `on_boundary`, `agreed` and `abandonable` of `trainer.datamodule.watch`. The DataModule calls
        this in set-up, before it samples."""


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

"""The contract between DataModules and algorithms: what the data ask of the module that they serve."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from rl_lightning.functional import Reduction
from rl_lightning.models import PolicyFiles
from rl_lightning.stopping import Ends
from rl_lightning.types import Microbatch, Rollout, Rows


class Learner(Protocol):
    """What DataModules ask of the algorithm that they serve."""

    @property
    def policy_files(self) -> PolicyFiles:
        """The files of the policy: its tokenizer, config and context length."""

    @property
    def learns_from(self) -> str | None:
        """What training steps must be given: `rollouts`, `demonstrations`, `samples` or `preferences`; None for whatever there is."""

    @property
    def evaluates_on(self) -> tuple[str, ...]:
        """The kinds of held-out data that it is measured on: sampled and scored `responses`, `demonstrations`, `preferences`."""

    @property
    def needs(self) -> Mapping[str, str]:
        """Fields of a rollout that a callback must supply → the callback to add when none does."""

    @property
    def fills(self) -> tuple[str, ...]:
        """Fields of a rollout that the module fills in itself; a callback that would overwrite them is refused."""

    @property
    def learns_from_rewards(self) -> bool:
        """Whether rewards must have a weight."""

    @property
    def wants_reference(self) -> bool:
        """Whether training data must bring log-probabilities of a frozen reference, that of `reference_files`."""

    @property
    def reduction(self) -> Reduction:
        """How tokens are averaged in the loss."""

    @property
    def device(self) -> torch.device:
        """Where the models are."""


class PolicyLearner(Learner, Protocol):
    """What DataModules ask of an algorithm with a policy that can be sampled."""

    @property
    def policy(self) -> nn.Module:
        """The policy, where the strategy has placed it."""

    @property
    def learns_from_zero_advantages(self) -> bool:
        """Whether a response may have a gradient though all of its advantages are 0."""

    def rollout_mode(self, *others: nn.Module) -> contextlib.AbstractContextManager[None]:
        """Return the context in which the policy is sampled, and rollouts are scored, by it or by other models."""

    def logprobs(self, batch: Rows, model: nn.Module | None = None) -> Tensor:
        """Return the log-probabilities of the response tokens, (B, R) in nats, of the policy or of another model."""

    def score(self, batch: Microbatch, single_update: bool) -> dict[str, Tensor]:
        """Return what must be known of a rollout before the policy changes: names of `Rollout` fields → (B, R) or (B,)."""

    def on_rollout_scored(self, rollout: Rollout) -> None:
        """Fill in what follows from the scores of a rollout."""


class ReferenceLearner(PolicyLearner, Protocol):
    """What DataModules ask of an algorithm that compares stored responses with a frozen reference."""

    @property
    def reference_files(self) -> PolicyFiles:
        """Configuration, tokenizer and weights of π_ref, which stored responses are scored with once."""


@dataclass(frozen=True)
class SampledPolicy:
    """A model that is sampled, and what must be known of it.

    Args:
        model: on its device.
        files: where it came from.
        ends: what ends its responses.
        version: names its weights, for a generator that samples a copy of them.
        mode: the context in which it is sampled.
    """

    model: nn.Module
    files: PolicyFiles
    ends: Ends
    version: Hashable
    mode: Callable[[], contextlib.AbstractContextManager[None]]


def trained_policy(trainer: Trainer, ends: Ends) -> Callable[[], SampledPolicy]:
    """Return a function that returns the policy as it is in training: where the strategy has put it, at its optimizer step.

    Args:
        trainer: trains or evaluates the policy.
        ends: what ends its responses.
    """

    def now() -> SampledPolicy:
        module = cast(PolicyLearner, trainer.lightning_module)
        return SampledPolicy(module.policy, module.policy_files, ends, trainer.global_step, module.rollout_mode)

    return now

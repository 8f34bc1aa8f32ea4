"""The contract between DataModules and algorithms: what the data ask of the module that they serve."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import ClassVar, Protocol

import torch
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

"""Responses that nothing judges, for algorithms that learn from no reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from rl_lightning.data.fits import without_reward
from rl_lightning.data.sampler import Sampler
from rl_lightning.data.sources import ExampleSource
from rl_lightning.errors import UserError
from rl_lightning.rewards import Ahead, BatchReward, Rewarder, RewardSample
from rl_lightning.types import Rollout


@dataclass
class UnjudgedSampler(Sampler):
    """A sampler without rewards: every response counts, and is worth 0."""

    def reward(self, rollout: Rollout, samples: Sequence[RewardSample], ahead: Ahead | None = None) -> Rollout:
        """See `Sampler.reward`. There are no components, so no metric speaks of rewards."""
        nothing = torch.zeros(len(rollout), device=rollout.input_ids.device)
        return replace(rollout, raw_rewards=nothing, rewards=nothing.clone(), correct=nothing.bool())


def unjudged(plain: Sampler, source: ExampleSource, needed: bool) -> UnjudgedSampler:
    """Return a sampler that asks for no reward.

    Args:
        plain: the usual one.
        source: of the prompts; it has no reward.
        needed: nothing can be done without one.

    Raises:
        UserError: if a reward is needed.
    """
    if needed:
        raise UserError(without_reward(source))
    nobody = Rewarder([BatchReward("nothing", 0.0, lambda samples: [0.0] * len(samples))])
    return UnjudgedSampler(**(vars(plain) | {"rewarder": nobody}))

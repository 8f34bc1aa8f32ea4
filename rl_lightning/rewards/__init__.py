"""Reward functions, and what runs them: :class:`Rewarder`.

Nothing here imports torch or Lightning, because every worker process imports this package; of the package itself it imports only
what it makes calls with.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rl_lightning.rewards.ahead import Ahead
    from rl_lightning.rewards.given import Rewards, as_rewards, as_specs
    from rl_lightning.rewards.pool import WorkerPool
    from rl_lightning.rewards.rewarder import Rewarder
    from rl_lightning.rewards.spec import BatchReward, Outcome, RewardLimits, RewardSample, RewardSpec, Scores

# Names are looked up when they are asked for: a worker starts in half the time.
_HOME = {
    "Ahead": "ahead",
    "BatchReward": "spec",
    "Outcome": "spec",
    "RewardLimits": "spec",
    "RewardSample": "spec",
    "RewardSpec": "spec",
    "Rewarder": "rewarder",
    "Rewards": "given",
    "Scores": "spec",
    "WorkerPool": "pool",
    "as_rewards": "given",
    "as_specs": "given",
}

__all__ = [
    "Ahead",
    "BatchReward",
    "Outcome",
    "RewardLimits",
    "RewardSample",
    "RewardSpec",
    "Rewarder",
    "Rewards",
    "Scores",
    "WorkerPool",
    "as_rewards",
    "as_specs",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    return found

"""Reward functions, and what runs them: :class:`Rewarder`.

Nothing here imports torch or Lightning, because every worker process imports this package.
"""

from rl_lightning.rewards.ahead import Ahead
from rl_lightning.rewards.rewarder import Rewarder
from rl_lightning.rewards.spec import BatchReward, RewardLimits, RewardSample, RewardSpec, Scores
from rl_lightning.rewards.workers import Outcome, WorkerPool

__all__ = [
    "Ahead",
    "BatchReward",
    "Outcome",
    "RewardLimits",
    "RewardSample",
    "RewardSpec",
    "Rewarder",
    "Scores",
    "WorkerPool",
]

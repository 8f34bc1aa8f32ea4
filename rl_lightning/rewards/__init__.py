"""Reward functions, and what runs them: :class:`Rewarder`.

Nothing here imports torch or Lightning, because every worker process imports this package.
"""

from rl_lightning.rewards.ahead import Ahead
from rl_lightning.rewards.given import Rewards, as_rewards, as_specs
from rl_lightning.rewards.pool import WorkerPool
from rl_lightning.rewards.rewarder import Rewarder
from rl_lightning.rewards.spec import BatchReward, Outcome, RewardLimits, RewardSample, RewardSpec, Scores

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

"""The objectives, one LightningModule a file."""

from rl_lightning.algorithms.base import ObjectiveModule, OptimizerOptions
from rl_lightning.algorithms.correction import SamplerCorrection
from rl_lightning.algorithms.critic import CriticModule
from rl_lightning.algorithms.dapo import DAPO
from rl_lightning.algorithms.dpo import DPO
from rl_lightning.algorithms.grpo import GRPO
from rl_lightning.algorithms.online import OnlineModule
from rl_lightning.algorithms.policy import PolicyModule
from rl_lightning.algorithms.ppo import PPO
from rl_lightning.algorithms.reward_model import RewardModel
from rl_lightning.algorithms.rft import RFT
from rl_lightning.algorithms.sft import SFT
from rl_lightning.learner import Learner, PolicyLearner, ReferenceLearner

#: What DataModules ask of an algorithm, every algorithm has: mypy checks it here.
_LEARNERS: tuple[type[Learner], ...] = (RewardModel,)
_POLICY_LEARNERS: tuple[type[PolicyLearner], ...] = (SFT, RFT, PPO, GRPO, DAPO)
_REFERENCE_LEARNERS: tuple[type[ReferenceLearner], ...] = (DPO,)

__all__ = [
    "DAPO",
    "DPO",
    "GRPO",
    "PPO",
    "RFT",
    "SFT",
    "CriticModule",
    "ObjectiveModule",
    "OnlineModule",
    "OptimizerOptions",
    "PolicyModule",
    "RewardModel",
    "SamplerCorrection",
]

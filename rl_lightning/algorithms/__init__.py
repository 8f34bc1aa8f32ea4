"""The objectives, one LightningModule a file."""

from rl_lightning.algorithms.base import ObjectiveModule, OptimizerOptions
from rl_lightning.algorithms.cispo import CISPO
from rl_lightning.algorithms.correction import SamplerCorrection
from rl_lightning.algorithms.critic import CriticModule
from rl_lightning.algorithms.dapo import DAPO
from rl_lightning.algorithms.distillation import Distillation
from rl_lightning.algorithms.dpo import DPO
from rl_lightning.algorithms.dppo import DPPO
from rl_lightning.algorithms.grpo import GRPO
from rl_lightning.algorithms.gspo import GSPO
from rl_lightning.algorithms.ipo import IPO
from rl_lightning.algorithms.kto import KTO, LabelledKTO
from rl_lightning.algorithms.online import ClippedModule, OnlineModule
from rl_lightning.algorithms.orpo import ORPO
from rl_lightning.algorithms.pairs import PairModule, ReferencedPairModule
from rl_lightning.algorithms.policy import PolicyModule, vanishes_with_advantage
from rl_lightning.algorithms.ppo import PPO
from rl_lightning.algorithms.reinforce_plus_plus import ReinforcePlusPlus
from rl_lightning.algorithms.reward_model import RewardModel
from rl_lightning.algorithms.rft import RFT
from rl_lightning.algorithms.robust_dpo import RobustDPO
from rl_lightning.algorithms.sapo import SAPO
from rl_lightning.algorithms.sft import SFT
from rl_lightning.algorithms.simpo import SimPO
from rl_lightning.learner import Learner, PolicyLearner, ReferenceLearner

#: What DataModules ask of an algorithm, every algorithm has: mypy checks it here.
_LEARNERS: tuple[type[Learner], ...] = (RewardModel,)
_POLICY_LEARNERS: tuple[type[PolicyLearner], ...] = (SFT, RFT, PPO, OnlineModule, PairModule)
_REFERENCE_LEARNERS: tuple[type[ReferenceLearner], ...] = (ReferencedPairModule,)

__all__ = [
    "CISPO",
    "DAPO",
    "DPO",
    "DPPO",
    "GRPO",
    "GSPO",
    "IPO",
    "KTO",
    "ORPO",
    "PPO",
    "RFT",
    "SAPO",
    "SFT",
    "ClippedModule",
    "CriticModule",
    "Distillation",
    "LabelledKTO",
    "ObjectiveModule",
    "OnlineModule",
    "OptimizerOptions",
    "PairModule",
    "PolicyModule",
    "ReferencedPairModule",
    "ReinforcePlusPlus",
    "RewardModel",
    "RobustDPO",
    "SamplerCorrection",
    "SimPO",
    "vanishes_with_advantage",
]

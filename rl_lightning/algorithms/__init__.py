"""The objectives, one LightningModule a file."""

from rl_lightning.algorithms.base import ObjectiveModule, OptimizerOptions
from rl_lightning.algorithms.grpo import GRPO
from rl_lightning.algorithms.online import OnlineModule
from rl_lightning.algorithms.policy import PolicyModule
from rl_lightning.algorithms.sft import SFT

__all__ = ["GRPO", "SFT", "ObjectiveModule", "OnlineModule", "OptimizerOptions", "PolicyModule"]

"""The objectives, one LightningModule a file."""

from rl_lightning.algorithms.base import OptimizerOptions, PolicyModule
from rl_lightning.algorithms.grpo import GRPO
from rl_lightning.algorithms.online import OnlineModule
from rl_lightning.algorithms.sft import SFT

__all__ = ["GRPO", "SFT", "OnlineModule", "OptimizerOptions", "PolicyModule"]

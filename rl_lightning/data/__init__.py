"""Where prompts, demonstrations and rollouts come from."""

from rl_lightning.data.demonstrations import DemonstrationDataModule
from rl_lightning.data.pairs import PairOptions
from rl_lightning.data.reward import RewardDataModule
from rl_lightning.data.rollout import RolloutDataModule
from rl_lightning.data.sampling import Evaluation, PromptOptions, SamplingDataModule
from rl_lightning.data.sources import ChainSum, DatasetExamples, ExampleSource, FileExamples, ReasoningGym

__all__ = [
    "ChainSum",
    "DatasetExamples",
    "DemonstrationDataModule",
    "Evaluation",
    "ExampleSource",
    "FileExamples",
    "PairOptions",
    "PromptOptions",
    "ReasoningGym",
    "RewardDataModule",
    "RolloutDataModule",
    "SamplingDataModule",
]

"""Where prompts, demonstrations and rollouts come from."""

from rl_lightning.data.offline.demonstrations import DemonstrationDataModule
from rl_lightning.data.offline.pairs import PairOptions
from rl_lightning.data.offline.reward import RewardDataModule
from rl_lightning.data.prompt_options import PromptOptions
from rl_lightning.data.rollout import RolloutDataModule
from rl_lightning.data.sampling import Evaluation, SamplingDataModule
from rl_lightning.data.sources import (
    ChainSum,
    DatasetExamples,
    EnvironmentExamples,
    Example,
    ExampleSource,
    FileExamples,
    ReasoningGym,
    TableExamples,
    as_source,
)

__all__ = [
    "ChainSum",
    "DatasetExamples",
    "DemonstrationDataModule",
    "EnvironmentExamples",
    "Evaluation",
    "Example",
    "ExampleSource",
    "FileExamples",
    "PairOptions",
    "PromptOptions",
    "ReasoningGym",
    "RewardDataModule",
    "RolloutDataModule",
    "SamplingDataModule",
    "TableExamples",
    "as_source",
]

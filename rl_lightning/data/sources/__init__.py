"""Where examples come from."""

from rl_lightning.data.sources.base import Example, ExampleSource, Split
from rl_lightning.data.sources.chain_sum import ChainSum
from rl_lightning.data.sources.files import FileExamples
from rl_lightning.data.sources.hub import DatasetExamples
from rl_lightning.data.sources.reasoning_gym import ReasoningGym

__all__ = ["ChainSum", "DatasetExamples", "Example", "ExampleSource", "FileExamples", "ReasoningGym", "Split"]

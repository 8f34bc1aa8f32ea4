"""Where examples come from."""

from rl_lightning.data.sources.base import Example, ExampleSource, Split
from rl_lightning.data.sources.chain_sum import ChainSum
from rl_lightning.data.sources.environment import EnvironmentExamples
from rl_lightning.data.sources.files import FileExamples
from rl_lightning.data.sources.handed import TableExamples, as_source
from rl_lightning.data.sources.hub import DatasetExamples
from rl_lightning.data.sources.reasoning_gym import ReasoningGym
from rl_lightning.data.sources.shape import Shape

__all__ = [
    "ChainSum",
    "DatasetExamples",
    "EnvironmentExamples",
    "Example",
    "ExampleSource",
    "FileExamples",
    "ReasoningGym",
    "Shape",
    "Split",
    "TableExamples",
    "as_source",
]

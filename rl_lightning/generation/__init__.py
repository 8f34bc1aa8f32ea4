"""Generators: what samples responses from a policy."""

from rl_lightning.generation.base import Generator, Prompt, Request, Responses, Stream
from rl_lightning.generation.copies import CopyGenerator
from rl_lightning.generation.native import NativeGenerator
from rl_lightning.generation.options import Sampling
from rl_lightning.generation.transformers import TransformersGenerator
from rl_lightning.generation.vllm import VLLMGenerator
from rl_lightning.generation.vllm_server import VLLMServerGenerator

__all__ = [
    "CopyGenerator",
    "Generator",
    "NativeGenerator",
    "Prompt",
    "Request",
    "Responses",
    "Sampling",
    "Stream",
    "TransformersGenerator",
    "VLLMGenerator",
    "VLLMServerGenerator",
]

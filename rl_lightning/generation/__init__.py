"""Sampling responses from a policy."""

from rl_lightning.generation.base import Generator, Responses, Sampling, Stream
from rl_lightning.generation.native import NativeGenerator
from rl_lightning.generation.transformers import TransformersGenerator

__all__ = ["Generator", "NativeGenerator", "Responses", "Sampling", "Stream", "TransformersGenerator"]

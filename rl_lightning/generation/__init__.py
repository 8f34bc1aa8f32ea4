"""Sampling responses from a policy."""

from rl_lightning.generation.base import Generator, Responses, Sampling, Stream
from rl_lightning.generation.native import NativeGenerator

__all__ = ["Generator", "NativeGenerator", "Responses", "Sampling", "Stream"]

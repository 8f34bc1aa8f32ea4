"""Models of transformers: loading, LoRA, packed forward passes, log-probabilities, value heads and sequence classifiers."""

from rl_lightning.models.adapter_files import save_adapter
from rl_lightning.models.adapters import (
    LoraOptions,
    adapter_off,
    add_adapter,
    describe_adapter,
    is_adapted,
)
from rl_lightning.models.classifier import ClassifierFiles, classifier_logits
from rl_lightning.models.critic import Critic, CriticFiles, ValueHead, head_for
from rl_lightning.models.forward import Entropy, Reading, read_responses, response_logits
from rl_lightning.models.judge import Judge, Text
from rl_lightning.models.load_options import LoadOptions
from rl_lightning.models.loading import PolicyFiles
from rl_lightning.models.location import EMBEDDED
from rl_lightning.models.plain import is_stored_by_name, plain_weights, save_plain

__all__ = [
    "EMBEDDED",
    "ClassifierFiles",
    "Critic",
    "CriticFiles",
    "Entropy",
    "Judge",
    "LoadOptions",
    "LoraOptions",
    "PolicyFiles",
    "Reading",
    "Text",
    "ValueHead",
    "adapter_off",
    "add_adapter",
    "classifier_logits",
    "describe_adapter",
    "head_for",
    "is_adapted",
    "is_stored_by_name",
    "plain_weights",
    "read_responses",
    "response_logits",
    "save_adapter",
    "save_plain",
]

"""Loading policies and classifiers, and running them forward."""

from rl_lightning.models.adapter_files import save_adapter
from rl_lightning.models.adapters import LoraOptions, adapter_off, add_adapter, is_adapted, merged_weights
from rl_lightning.models.classifier import ClassifierFiles, Judge, Text, classifier_logits
from rl_lightning.models.critic import Critic, CriticFiles, ValueHead, head_for
from rl_lightning.models.forward import response_logits, response_outputs
from rl_lightning.models.loading import EMBEDDED, LoadOptions, PolicyFiles

__all__ = [
    "EMBEDDED",
    "ClassifierFiles",
    "Critic",
    "CriticFiles",
    "Judge",
    "LoadOptions",
    "LoraOptions",
    "PolicyFiles",
    "Text",
    "ValueHead",
    "adapter_off",
    "add_adapter",
    "classifier_logits",
    "head_for",
    "is_adapted",
    "merged_weights",
    "response_logits",
    "response_outputs",
    "save_adapter",
]

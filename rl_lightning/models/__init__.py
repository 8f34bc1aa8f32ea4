"""Loading policies and classifiers, and running them forward."""

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
    "PolicyFiles",
    "Text",
    "ValueHead",
    "classifier_logits",
    "head_for",
    "response_logits",
    "response_outputs",
]

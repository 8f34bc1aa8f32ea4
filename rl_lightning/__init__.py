"""Reinforcement-learning post-training of language models on PyTorch Lightning."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rl_lightning.algorithms import GRPO, SFT, OnlineModule, PolicyModule
    from rl_lightning.callbacks import GroupNormalize, HFExport, OverlongShaping, RolloutCallback
    from rl_lightning.data import DemonstrationDataModule, RolloutDataModule
    from rl_lightning.errors import UserError
    from rl_lightning.types import Minibatch, Rollout

__version__ = "0.1.0"

# Names are looked up when they are asked for: reward workers import this package too, and must start without torch.
_HOME = {
    "GRPO": "algorithms",
    "SFT": "algorithms",
    "OnlineModule": "algorithms",
    "PolicyModule": "algorithms",
    "GroupNormalize": "callbacks",
    "HFExport": "callbacks",
    "OverlongShaping": "callbacks",
    "RolloutCallback": "callbacks",
    "DemonstrationDataModule": "data",
    "RolloutDataModule": "data",
    "UserError": "errors",
    "Minibatch": "types",
    "Rollout": "types",
}

__all__ = [
    "GRPO",
    "SFT",
    "DemonstrationDataModule",
    "GroupNormalize",
    "HFExport",
    "Minibatch",
    "OnlineModule",
    "OverlongShaping",
    "PolicyModule",
    "Rollout",
    "RolloutCallback",
    "RolloutDataModule",
    "UserError",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)

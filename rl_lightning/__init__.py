"""Reinforcement-learning post-training of language models on PyTorch Lightning."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rl_lightning.algorithms import (
        CISPO,
        DAPO,
        DPO,
        DPPO,
        GRPO,
        GSPO,
        IPO,
        KTO,
        ORPO,
        PPO,
        RFT,
        SAPO,
        SFT,
        Distillation,
        LabelledKTO,
        OnlineModule,
        PairModule,
        PolicyModule,
        ReinforcePlusPlus,
        RewardModel,
        RobustDPO,
        SimPO,
    )
    from rl_lightning.callbacks import (
        AdaptiveKL,
        DynamicSampling,
        GroupNormalize,
        HFExport,
        OverlongFilter,
        OverlongShaping,
        RejectionSampling,
        RolloutCallback,
    )
    from rl_lightning.data import DemonstrationDataModule, RewardDataModule, RolloutDataModule
    from rl_lightning.errors import UserError
    from rl_lightning.loading import load
    from rl_lightning.tensorboard import TensorBoard
    from rl_lightning.trainer import Trainer
    from rl_lightning.types import Microbatch, Rollout

__version__ = "0.1.0"

# Names are looked up when they are asked for: reward workers import this package too, and must start without torch.
_HOME = {
    "DAPO": "algorithms",
    "CISPO": "algorithms",
    "DPPO": "algorithms",
    "GSPO": "algorithms",
    "IPO": "algorithms",
    "KTO": "algorithms",
    "LabelledKTO": "algorithms",
    "ORPO": "algorithms",
    "SAPO": "algorithms",
    "Distillation": "algorithms",
    "PairModule": "algorithms",
    "ReinforcePlusPlus": "algorithms",
    "RobustDPO": "algorithms",
    "SimPO": "algorithms",
    "DPO": "algorithms",
    "GRPO": "algorithms",
    "PPO": "algorithms",
    "RFT": "algorithms",
    "SFT": "algorithms",
    "OnlineModule": "algorithms",
    "PolicyModule": "algorithms",
    "RewardModel": "algorithms",
    "AdaptiveKL": "callbacks",
    "DynamicSampling": "callbacks",
    "GroupNormalize": "callbacks",
    "HFExport": "callbacks",
    "OverlongFilter": "callbacks",
    "OverlongShaping": "callbacks",
    "RejectionSampling": "callbacks",
    "RolloutCallback": "callbacks",
    "DemonstrationDataModule": "data",
    "RewardDataModule": "data",
    "RolloutDataModule": "data",
    "TensorBoard": "tensorboard",
    "Trainer": "trainer",
    "UserError": "errors",
    "load": "loading",
    "Microbatch": "types",
    "Rollout": "types",
}

__all__ = [
    "CISPO",
    "DAPO",
    "DPO",
    "DPPO",
    "GRPO",
    "GSPO",
    "IPO",
    "KTO",
    "ORPO",
    "PPO",
    "RFT",
    "SAPO",
    "SFT",
    "AdaptiveKL",
    "DemonstrationDataModule",
    "Distillation",
    "DynamicSampling",
    "GroupNormalize",
    "HFExport",
    "LabelledKTO",
    "Microbatch",
    "OnlineModule",
    "OverlongFilter",
    "OverlongShaping",
    "PairModule",
    "PolicyModule",
    "ReinforcePlusPlus",
    "RejectionSampling",
    "RewardDataModule",
    "RewardModel",
    "RobustDPO",
    "Rollout",
    "RolloutCallback",
    "RolloutDataModule",
    "SimPO",
    "TensorBoard",
    "Trainer",
    "UserError",
    "load",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)

"""The runs of `spread`, with an adapter; run as a script, on two gloo processes, saved by rank 0."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from rl_lightning.algorithms import GRPO, PPO, RewardModel
from rl_lightning.callbacks import GroupNormalize
from rl_lightning.models import LoraOptions
from tests.invariants import spread

LORA: dict[str, Any] = {"lora": LoraOptions(rank=2)}

spread.RUNS |= {
    "grpo, lora": lambda: (GRPO, {"kl_coef": 0.5, **LORA}, spread.rollouts(epochs_per_rollout=2), [GroupNormalize()]),
    "ppo, lora": lambda: (PPO, {"critic_lr": 0.02, **LORA}, spread.rollouts(), []),
    "reward model, lora": lambda: (RewardModel, {"margin": 0.5, **LORA}, spread.offline(4), []),
}
RUNS = [name for name in spread.RUNS if name.endswith(", lora")]

if __name__ == "__main__":
    spread.main(*sys.argv[1:])

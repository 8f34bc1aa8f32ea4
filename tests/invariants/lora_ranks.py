"""The runs of `spread`, with an adapter; run as a script, on two gloo processes, saved by rank 0."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from rl_lightning.algorithms import GRPO, PPO, RewardModel
from rl_lightning.callbacks import GroupNormalize, HFExport
from rl_lightning.models import LoraOptions
from tests.invariants import spread

LORA: dict[str, Any] = {"lora": LoraOptions(rank=2)}

spread.RUNS |= {
    "grpo, lora": lambda: (GRPO, {"kl_coef": 0.5, **LORA}, spread.rollouts(epochs_per_rollout=2), [GroupNormalize()]),
    "ppo, lora": lambda: (PPO, {"critic_lr": 0.02, **LORA}, spread.rollouts(), []),
    "reward model, lora": lambda: (RewardModel, {"margin": 0.5, **LORA}, spread.offline(4), []),
}
RUNS = [name for name in spread.RUNS if name.endswith(", lora")]


def fit(name: str, policy: str, directory: Path, **settings: Any) -> dict[str, Any]:
    """Train, export both ways, and return what two runs must agree on."""
    exports = [HFExport(str(directory / kind), merge=kind == "merged") for kind in ("merged", "alone")]
    return spread.result(*spread.fit(name, policy, directory, callbacks=exports, **settings))


def main(strategy: str, policy: str, directory: str) -> None:
    torch.set_num_threads(1)
    for name in RUNS:
        saved = fit(name, policy, Path(directory) / name, devices=2, strategy=spread.STRATEGIES[strategy]())
        if int(os.environ.get("LOCAL_RANK", 0)) == 0:
            torch.save(saved, Path(directory) / f"{name}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])

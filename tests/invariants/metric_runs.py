"""Everything that runs of all algorithms log, step by step, on one process or on two."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch

from rl_lightning.algorithms import DAPO, DPO, GRPO, PPO, RFT, SFT, OptimizerOptions, RewardModel
from rl_lightning.callbacks import (
    AdaptiveKL,
    DynamicSampling,
    GroupNormalize,
    HeldOutDivergence,
    NonFiniteGuard,
    OverlongFilter,
    OverlongShaping,
    RejectionSampling,
)
from rl_lightning.data import ChainSum, DemonstrationDataModule, Evaluation, RewardDataModule, RolloutDataModule
from rl_lightning.generation import Sampling
from rl_lightning.hooks import RolloutCallback
from rl_lightning.measures import Mean, Sum
from rl_lightning.models import LoadOptions
from rl_lightning.rewards import RewardLimits, RewardSpec
from rl_lightning.types import Rollout
from tests.support import trainer

#: Some responses have no reward, and some rollouts few of them.
REWARDS = [
    RewardSpec("tests.rewards_light.fails_on_some"),
    RewardSpec("rl_lightning.rewards.functions.response_length"),
]
COMMON: dict[str, Any] = {
    "prompts": ChainSum(train_size=24, val_size=5),
    "sampling": Sampling(max_new_tokens=7),
    "rewards": REWARDS,
    "reward_limits": RewardLimits(max_failed_fraction=0.95),
    "evaluation": Evaluation(3, prompts_per_batch=2),
    "correct_threshold": 4.5,
    "seed": 3,
}


def rollouts(**sizes: Any) -> RolloutDataModule:
    sizes = {"prompts_per_rollout": 4, "group_size": 4, "microbatch_size": 4} | sizes
    return RolloutDataModule(**COMMON, **sizes)


def offline(samples: int) -> RewardDataModule:
    return RewardDataModule(**COMMON, group_size=samples, batch_size=8, microbatch_size=2)


def dynamic(**settings: Any) -> list[Any]:
    return [GroupNormalize(), DynamicSampling(**settings), OverlongFilter(), OverlongShaping(cache_length=4)]


class SameForAll(GroupNormalize):
    """All advantages are 0: nothing teaches."""

    def on_rollout_advantages(self, trainer: Any, module: Any, rollout: Rollout) -> None:
        rollout.advantages = torch.zeros(rollout.response_mask.shape, dtype=torch.float64)


class FirstPrompt(SameForAll):
    """One group teaches, and so one rank."""

    def on_rollout_advantages(self, trainer: Any, module: Any, rollout: Rollout) -> None:
        super().on_rollout_advantages(trainer, module, rollout)
        chosen = (rollout.prompt_index % 5 == 0)[:, None] & rollout.response_mask
        rollout.advantages = torch.where(chosen, 0.5, 0.0).double()


class Own(RolloutCallback):
    """Adds a count, a mean and a number of its own."""

    def on_rollout_rewards(self, trainer: Any, module: Any, rollout: Rollout) -> None:
        rollout.metrics["own/tokens"] = Sum(rollout.lengths.sum())
        rollout.metrics["own/length"] = Mean.of(rollout.lengths, rollout.scored)
        rollout.metrics["own/tensor"] = torch.tensor(0.5)  # type: ignore[assignment]


#: Name → module class, its options, data, callbacks.
RUNS: dict[str, Any] = {
    "sft": lambda: (SFT, {}, DemonstrationDataModule(**COMMON, batch_size=8, microbatch_size=2), []),
    "rft": lambda: (RFT, {}, offline(2), [RejectionSampling(5.0)]),
    "rft online": lambda: (RFT, {"online": True}, rollouts(), [RejectionSampling(5.0), Own()]),
    "dpo": lambda: (DPO, {"beta": 1.0}, offline(4), [HeldOutDivergence()]),
    "reward model": lambda: (RewardModel, {"margin": 0.5}, offline(4), []),
    "ppo": lambda: (PPO, {"value_clip": 0.1}, rollouts(epochs_per_rollout=2), [OverlongFilter(), Own()]),
    "grpo": lambda: (GRPO, {"kl_coef": 0.5}, rollouts(), [GroupNormalize(), OverlongFilter(), AdaptiveKL(0.1)]),
    "grpo, kl in the reward": lambda: (GRPO, {"kl_in": "reward"}, rollouts(), [GroupNormalize(scale="batch")]),
    "grpo, nothing teaches": lambda: (GRPO, {"kl_coef": 0.0}, rollouts(), [SameForAll()]),
    "grpo, one rank idle": lambda: (GRPO, {"kl_coef": 0.0}, rollouts(), [FirstPrompt()]),
    "dapo": lambda: (DAPO, {}, rollouts(epochs_per_rollout=2), dynamic(prompts_per_chunk=6, max_chunks=6)),
    "dapo, few groups": lambda: (DAPO, {}, rollouts(), dynamic(prompts_per_chunk=2, max_chunks=2)),
}


class Watch(pl.Callback):
    """Keeps every number that is logged, step by step and at the end of every validation."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def _keep(self, trainer: Any) -> None:
        self.steps.append({name: float(value) for name, value in trainer.callback_metrics.items()})

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch.ends_step:
            self._keep(trainer)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self._keep(trainer)


def logged(name: str, policy: str, directory: Any, **settings: Any) -> list[dict[str, float]]:
    """Train for two epochs, if the settings say no other number, and return what was logged."""
    pl.seed_everything(0, verbose=False)
    algorithm, own, data, needed = RUNS[name]()
    module = algorithm(policy=policy, load=LoadOptions(dtype="float64"), optimizer=OptimizerOptions(lr=1e-2), **own)
    watch = Watch()
    settings = {"max_epochs": 2, "limit_val_batches": 1.0} | settings
    trainer(directory, [*needed, NonFiniteGuard(), watch], online=False, **settings).fit(module, datamodule=data)
    return watch.steps

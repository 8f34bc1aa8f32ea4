"""Runs with dynamic sampling for the tests: a response is correct if it is long enough."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from rl_lightning.algorithms import DAPO, OptimizerOptions
from rl_lightning.callbacks import DynamicSampling, RNGState, RolloutCallback
from rl_lightning.data import ChainSum, RolloutDataModule
from rl_lightning.generation import Sampling
from rl_lightning.models import LoadOptions
from rl_lightning.rewards import RewardSpec
from rl_lightning.types import Rollout
from tests.support import trainer

CAP = 9
SIZES = {"prompts_per_rollout": 8, "group_size": 4, "minibatch_size": 16, "microbatch_size": 8}


class Watch(RolloutCallback):
    """Keeps the rollouts, the policy before each of them and after each step, and what every microbatch was made of."""

    def __init__(self) -> None:
        self.rollouts: list[Rollout] = []
        self.before: list[list[torch.Tensor]] = []
        self.after: list[list[torch.Tensor]] = []
        self.batches: list[Any] = []
        self.ratios: list[torch.Tensor] = []
        self.steps: list[Any] = []
        self.logged: list[dict[str, float]] = []

    def on_rollout_end(self, trainer: Any, module: Any, rollout: Rollout) -> None:
        self.rollouts.append(rollout)
        self.before.append(weights(module))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.batches.append(batch)
        self.ratios.append(pl_module.observations.latest["policy/ratio_mean"].clone())
        self.steps.append((trainer.global_step, float(outputs["loss"]).hex(), batch.input_ids.tolist()))
        if batch.ends_step:
            self.after.append(weights(pl_module))
            self.logged.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def weights(module: Any) -> list[torch.Tensor]:
    """Return a copy of the policy's weights."""
    return [parameter.detach().clone() for parameter in module.policy.parameters()]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    """Tell whether two sets of weights agree to the last bit."""
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def run(
    policy: str,
    directory: Path | str,
    dropping: Any = None,
    lr: float = 1e-2,
    threshold: float = 5.5,
    algorithm: type[DAPO] = DAPO,
    callbacks: Any = (),
    sizes: dict[str, Any] | None = None,
    prompts: int = 64,
    dtype: str = "float32",
    ckpt_path: Any = None,
    **options: Any,
) -> Watch:
    """Train and return what was seen."""
    watch = Watch()
    data = RolloutDataModule(
        prompts=ChainSum(train_size=prompts, val_size=4), sampling=Sampling(max_new_tokens=CAP), seed=1,
        rewards=[RewardSpec("rl_lightning.rewards.functions.response_length")], correct_threshold=threshold,
        **(SIZES | (sizes or {})),
    )  # fmt: skip
    module = algorithm(
        policy=policy, load=LoadOptions(dtype=dtype), optimizer=OptimizerOptions(lr=lr, weight_decay=0.1 * (lr > 0))
    )
    dropping = [] if dropping is None else dropping if isinstance(dropping, list) else [dropping]
    fitted = trainer(directory, [RNGState(), *dropping, watch, *callbacks], **({"max_epochs": 3} | options))
    fitted.fit(module, datamodule=data, ckpt_path=ckpt_path, **({"weights_only": True} if ckpt_path else {}))
    return watch


class KeepAll(DynamicSampling):
    """Drops nothing."""

    def keep_groups(self, trainer: Any, module: Any, rollout: Rollout) -> torch.Tensor:
        return torch.ones(len(rollout), dtype=torch.bool)


class FirstOfChunk(DynamicSampling):
    """Keeps one group of every chunk."""

    def keep_groups(self, trainer: Any, module: Any, rollout: Rollout) -> torch.Tensor:
        return rollout.group_ids == 0


class EveryFifth(DynamicSampling):
    """Keeps the prompts whose number five divides."""

    def keep_groups(self, trainer: Any, module: Any, rollout: Rollout) -> torch.Tensor:
        return rollout.prompt_index % 5 == 0


class Never(DynamicSampling):
    """Keeps everything in the first rollouts, then nothing."""

    def __init__(self, after: int = 0, **settings: Any) -> None:
        super().__init__(**settings)
        self.after = after

    def keep_groups(self, trainer: Any, module: Any, rollout: Rollout) -> torch.Tensor:
        return torch.full((len(rollout),), trainer.current_epoch < self.after)


#: Settings of `run` that one process and two must agree on.
SCENARIOS: dict[str, Any] = {
    "surplus": lambda: {"dropping": DynamicSampling(prompts_per_chunk=12), "max_epochs": 2},
    "smaller": lambda: {
        "dropping": DynamicSampling(max_chunks=2, prompts_per_chunk=6, surplus="drop"),
        "max_epochs": 2,
    },
    "skip": lambda: {"dropping": EveryFifth(max_chunks=3, on_exhaustion="skip"), "max_epochs": 1},
}

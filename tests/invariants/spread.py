"""Every algorithm on its own samples, under any strategy, on one process or on two."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy
from torch.distributed.fsdp import FullyShardedDataParallel

from rl_lightning.algorithms import DAPO, DPO, GRPO, PPO, RFT, SFT, OptimizerOptions, RewardModel
from rl_lightning.callbacks import DynamicSampling, GracefulStop, GroupNormalize, HFExport, RejectionSampling, RNGState
from rl_lightning.callbacks.graceful_stop import STOPPED_EARLY
from rl_lightning.data import ChainSum, DemonstrationDataModule, Evaluation, RewardDataModule, RolloutDataModule
from rl_lightning.generation import Sampling
from rl_lightning.models import LoadOptions, LoraOptions
from rl_lightning.rewards import RewardSpec
from rl_lightning.strategies import AtomicCheckpointIO, FSDP2Strategy, full_state_dict
from rl_lightning.strategies.sharding import whole
from tests.support import trainer


class FSDP1OnCPU(FSDPStrategy):
    """Lightning's strategy, which takes GPUs only, on the CPU: but for the device it is the same."""

    def _setup_model(self, model: torch.nn.Module) -> torch.nn.Module:
        kwargs = {"sharding_strategy": self.sharding_strategy, "mixed_precision": self.mixed_precision_config}
        return FullyShardedDataParallel(model, device_id=torch.device("cpu"), **kwargs, **self.kwargs)


STRATEGIES: dict[str, Any] = {
    "ddp": lambda: "ddp",
    "fsdp2": FSDP2Strategy,
    "fsdp1": lambda: FSDP1OnCPU(state_dict_type="sharded"),
    "fsdp2, shares": lambda: FSDP2Strategy(save_distributed_checkpoint=True),
}

REWARDS = [RewardSpec("rl_lightning.rewards.functions.response_length")]
COMMON: dict[str, Any] = {"sampling": Sampling(max_new_tokens=7), "rewards": REWARDS, "seed": 3}
LORA: dict[str, Any] = {"lora": LoraOptions(rank=2)}
BATCHES: dict[str, Any] = {"batch_size": 8, "microbatch_size": 2}


def prompts() -> ChainSum:
    return ChainSum(train_size=24, val_size=5, test_size=5)


def rollouts(**sizes: Any) -> RolloutDataModule:
    sizes = {"prompts_per_rollout": 4, "group_size": 4, "microbatch_size": 4, "minibatch_size": 8} | sizes
    return RolloutDataModule(prompts=prompts(), evaluation=Evaluation(2, prompts_per_batch=2), **COMMON, **sizes)


def offline(samples: int) -> RewardDataModule:
    return RewardDataModule(prompts=prompts(), group_size=samples, **COMMON, **BATCHES)


#: Name → module class, its options, data, callbacks.
RUNS: dict[str, Any] = {
    "sft": lambda: (SFT, {}, DemonstrationDataModule(prompts=prompts(), rewards=REWARDS, **BATCHES), []),
    "rft": lambda: (RFT, {}, offline(1), [RejectionSampling()]),
    "rft online": lambda: (RFT, {"online": True}, rollouts(), [RejectionSampling()]),
    "dpo": lambda: (DPO, {"beta": 1.0}, offline(4), []),
    "reward model": lambda: (RewardModel, {"margin": 0.5}, offline(4), []),
    "ppo": lambda: (PPO, {"whiten_advantages": True, "critic_lr": 0.02}, rollouts(epochs_per_rollout=2), []),
    "ppo, shared critic": lambda: (PPO, {"critic": "shared"}, rollouts(), []),
    "grpo": lambda: (GRPO, {"kl_coef": 0.5}, rollouts(), [GroupNormalize()]),
    "dapo": lambda: (
        DAPO,
        {},
        rollouts(epochs_per_rollout=2),
        [GroupNormalize(), DynamicSampling(prompts_per_chunk=6, max_chunks=6)],
    ),
}


#: The same on an adapter.
ADAPTED: dict[str, Any] = {
    "grpo, lora": lambda: (GRPO, {"kl_coef": 0.5, **LORA}, rollouts(), [GroupNormalize()]),
    "ppo, lora": lambda: (PPO, {"critic_lr": 0.02, **LORA}, rollouts(), []),
    "reward model, lora": lambda: (RewardModel, {"margin": 0.5, **LORA}, offline(4), []),
}


class Watch(pl.Callback):
    """Keeps every optimizer step's gradient, whole."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []
        self.shares: list[float] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        named = [(name, p) for name, p in pl_module.named_parameters() if p.requires_grad and p.grad is not None]
        self.shares = [getattr(p, "to_local", lambda p=p: p)().numel() / p.numel() for _, p in named]
        model, context = trainer.strategy.model, contextlib.nullcontext()
        if isinstance(model, FullyShardedDataParallel):
            context = FullyShardedDataParallel.summon_full_params(model, with_grads=True, writeback=False)
        with context:
            named = [(name, p) for name, p in pl_module.named_parameters() if p.requires_grad and p.grad is not None]
            self.steps.append({name.replace("_fsdp_wrapped_module.", ""): whole(p.grad).clone() for name, p in named})


def fit(
    name: str,
    policy: str,
    directory: Any,
    dtype: str = "float64",
    callbacks: Any = (),
    options: Any = None,
    **settings: Any,
) -> Any:
    """Train for two epochs; return the trainer, the module and what was seen."""
    pl.seed_everything(0, verbose=False)
    algorithm, own, data, needed = (RUNS | ADAPTED)[name]()
    optimizer = OptimizerOptions(lr=1e-2, schedule="linear")
    module = algorithm(policy=policy, load=LoadOptions(dtype=dtype, **(options or {})), optimizer=optimizer, **own)
    watch = Watch()
    settings = {"max_epochs": 2, "gradient_clip_val": 0.5, "limit_val_batches": 1.0} | settings
    ckpt = {"ckpt_path": settings.pop("ckpt_path"), "weights_only": True} if "ckpt_path" in settings else {}
    run = trainer(directory, [RNGState(), *needed, watch, *callbacks], online=False, **settings)
    run.fit(module, datamodule=data, **ckpt)
    return run, module, watch


def result(run: Any, module: Any, watch: Watch) -> dict[str, Any]:
    """Return what two runs must agree on; every rank must call it."""
    metrics = {
        name: float(value)
        for name, value in run.callback_metrics.items()
        if not name.startswith(("time/", "speed/", "work/"))
    }
    return {"steps": watch.steps, "weights": full_state_dict(module, run), "logged": metrics, "shares": watch.shares}


def on_two(name: str, policy: str, directory: Any, strategy: str, **settings: Any) -> dict[str, Any]:
    """Train on this rank of two under a strategy, and return what two runs must agree on."""
    return result(*fit(name, policy, directory, devices=2, strategy=STRATEGIES[strategy](), **settings))


def _checkpoints() -> dict[str, Any]:
    return {"enable_checkpointing": True, "plugins": [AtomicCheckpointIO()]}


class At(ModelCheckpoint):
    """Keeps a checkpoint after some optimizer steps: to gather every tensor takes as long as a step."""

    def __init__(self, directory: Path, steps: Sequence[int]) -> None:
        super().__init__(directory, save_top_k=-1, filename="{step}", every_n_train_steps=1)
        self.steps = steps

    def on_train_batch_end(self, trainer: Any, *batch: Any) -> None:
        if trainer.global_step in self.steps:
            super().on_train_batch_end(trainer, *batch)


def kept(
    name: str, policy: str, directory: Path, strategy: str, steps: Sequence[int], **settings: Any
) -> dict[str, Any]:
    """The same, with checkpoints of some steps and of every epoch's end in `kept`, and the policy exported to `hf`."""
    ends = ModelCheckpoint(
        directory / "kept", save_top_k=-1, filename="{epoch}", every_n_epochs=1, save_on_train_epoch_end=True
    )
    callbacks = [At(directory / "kept", steps), ends, HFExport(str(directory / "hf"))]
    return on_two(name, policy, directory, strategy, callbacks=callbacks, **_checkpoints(), **settings)


def resumed(
    name: str, policy: str, directory: Path, strategy: str, checkpoint: Path, **settings: Any
) -> dict[str, Any]:
    """The same from a checkpoint on."""
    # The checkpoint callback is another one, or it would go on deleting what it finds.
    other = [ModelCheckpoint(directory / "other")]
    return on_two(
        name, policy, directory, strategy, callbacks=other, ckpt_path=checkpoint, **_checkpoints(), **settings
    )


def stopped(name: str, policy: str, directory: Path, strategy: str, tell: Any) -> Path:
    """Train until a callback has sent a signal to one rank, and return the checkpoint that is left."""
    try:
        on_two(name, policy, directory, strategy, callbacks=[tell, GracefulStop()], enable_checkpointing=True)
    except SystemExit as stop:
        assert stop.code == STOPPED_EARLY, stop.code
    else:
        raise AssertionError("nothing has stopped it")
    (last,) = directory.rglob("last.ckpt")
    return last


class Tell(pl.Callback):
    """Sends SIGTERM to one rank, once, at some moment of an epoch: sampling, backward or validation."""

    def __init__(self, moment: str, rank: int, epoch: int = 1) -> None:
        self.moment, self.rank, self.epoch = moment, rank, epoch

    def _at(self, trainer: Any, moment: str) -> None:
        if (moment, trainer.global_rank, trainer.current_epoch) == (self.moment, self.rank, self.epoch):
            self.epoch = -1
            os.kill(os.getpid(), signal.SIGTERM)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        trainer.datamodule.watch.on_progress = lambda done, total: self._at(
            trainer, "validation" if trainer.validating else "sampling"
        )

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        self._at(trainer, "backward")


class Ratios(pl.Callback):
    """Keeps the ratios of every microbatch, and the dtype of the weights."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []
        self.dtype = ""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append(pl_module.observations.latest["policy/ratio_mean"].clone())
        self.dtype = str(next(pl_module.policy.parameters()).dtype)


#: Sharded runs in other precisions, and with recomputed activations: name → strategy, and settings of `fit`.
VARIANTS: dict[str, Any] = {
    "float32": ({}, {}),
    "bf16-mixed": ({}, {"precision": "bf16-mixed"}),
    "bf16-true": ({}, {"precision": "bf16-true"}),
    "gathered in bfloat16": ({"gather_dtype": "bfloat16"}, {}),
    "recomputed": ({}, {"options": {"gradient_checkpointing": True}}),
}


def variant(name: str, policy: str, directory: Path) -> dict[str, Any]:
    """Train with GRPO on this rank of two, sharded, in one of the variants; the ratios are returned too."""
    (sharding, settings), ratios = VARIANTS[name], Ratios()
    strategy = FSDP2Strategy(**sharding)
    seen = fit("grpo", policy, directory, "float32", [ratios], devices=2, strategy=strategy, **settings)
    return result(*seen) | {"ratios": ratios.seen, "dtype": ratios.dtype}

"""Small pieces that several tests build on."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from inspect import isfunction
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities import registry
from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultMetric
from torch import Tensor

from rl_lightning.callbacks import GroupNormalize
from rl_lightning.data import ChainSum, RolloutDataModule
from rl_lightning.data.collect import Collector
from rl_lightning.generation import Request, Sampling
from rl_lightning.types import Rollout
from tests.tiny import CHARACTERS, PAD

GROUP = 4


class Tokens(NamedTuple):
    """A prompt for generators, of which nothing but its token ids is known."""

    input_ids: list[int]
    example: object = None


def request_for(
    prompts: list[list[int]],
    streams: list[tuple[int, int]],
    sampling: Sampling,
    stop_ids: frozenset[int] = frozenset(),
    stop_strings: Any = None,
    pad_id: int = 0,
    caps: Any = None,
) -> Request:
    """Ask for responses to prompts that are given as token ids."""
    return Request(
        [Tokens(ids) for ids in prompts],
        len(streams) // len(prompts),
        streams,
        sampling,
        stop_ids,
        stop_strings,
        pad_id,
        caps,
    )


def random_rollout(groups: int = 4, group_size: int = GROUP, dtype: torch.dtype = torch.float64) -> Rollout:
    """Return responses of random tokens and lengths to random prompts, with everything an objective may read."""
    generator = torch.Generator().manual_seed(3)
    rows, prompt, response = groups * group_size, 5, 9

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=dtype)

    ids = torch.randint(3, 3 + len(CHARACTERS), (rows, prompt + response), generator=generator)
    prompt_lengths = torch.randint(1, prompt + 1, (groups,), generator=generator).repeat_interleave(group_size)
    lengths = torch.randint(1, response + 1, (rows,), generator=generator)
    attention = torch.cat(
        [torch.arange(prompt) >= (prompt - prompt_lengths)[:, None], torch.arange(response) < lengths[:, None]], 1
    )
    mask = attention[:, prompt:]
    ids = torch.where(attention, ids, PAD)
    logprobs = -uniform(rows, response) * 4
    rewards = uniform(rows)
    return Rollout(
        input_ids=ids,
        attention_mask=attention,
        response_mask=mask,
        group_ids=torch.arange(groups).repeat_interleave(group_size),
        temperature=1.0,
        prompt_index=torch.arange(rows),
        truncated=torch.zeros(rows, dtype=torch.bool),
        rollout_logprobs=logprobs.float(),
        prompts=["" for _ in range(rows)],
        responses=["" for _ in range(rows)],
        answers=[None for _ in range(rows)],
        raw_rewards=rewards,
        rewards=rewards.clone(),
        correct=rewards > 0.5,
        old_logprobs=logprobs * mask,
        ref_logprobs=(logprobs + uniform(rows, response) - 0.5) * mask,
        advantages=(uniform(rows, 1) * 4 - 2).expand(-1, response) * mask,
    )


class StoredRollouts(RolloutDataModule):
    """Serves one rollout that is given, each rank its share of the groups, instead of sampling."""

    def __init__(self, rollout: Rollout, **sizes: Any) -> None:
        super().__init__(
            prompts=ChainSum(train_size=64, val_size=8), prompts_per_rollout=len(rollout) // GROUP, **sizes
        )
        self.stored = rollout

    def make_collector(self) -> Collector:
        collector = super().make_collector()
        collector.collect = self.collect  # type: ignore[method-assign]
        return collector

    def collect(self, number: int) -> Rollout:
        assert self.trainer is not None
        share = len(self.stored) // self.trainer.world_size
        return self.stored.select(torch.arange(share) + self.trainer.global_rank * share)


class KeepGradients(pl.Callback):
    """Keeps the gradient of every optimizer step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        named = pl_module.policy.named_parameters()
        self.steps.append({name: parameter.grad.clone() for name, parameter in named if parameter.grad is not None})


def trainer(directory: Path | str, callbacks: Any = (), online: bool = True, **options: Any) -> pl.Trainer:
    """Return a silent Trainer on the CPU, with what an online algorithm needs."""
    settings = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False, "max_epochs": 1}
    settings |= {"enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 0}
    settings |= {"default_root_dir": str(directory), "num_sanity_val_steps": 0, "log_every_n_steps": 1}
    return pl.Trainer(callbacks=[*([GroupNormalize()] if online else []), *callbacks], **(settings | options))


def gradients(module: pl.LightningModule, data: RolloutDataModule, directory: Path | str, **options: Any) -> Any:
    """Return the gradients of the first optimizer steps of a fit."""
    keep = KeepGradients()
    trainer(directory, [keep], **options).fit(module, datamodule=data)
    return keep.steps


def spare_repetition() -> None:
    """Spare a fifth of a short run: have Lightning move no number that is logged to the device that it is on already, and look
    only once for callbacks among all packages that are installed. And spare each process that trains an adapter two seconds:
    PEFT imports bitsandbytes, which compiles functions that hardly anybody calls; they are compiled when they are called."""
    move = _ResultMetric.to

    def moved(metric: _ResultMetric, *args: Any, **kwargs: Any) -> _ResultMetric:
        there = metric.is_tensor and args == (metric.value.device,)
        return metric if there else move(metric, *args, **kwargs)

    _ResultMetric.to = moved  # type: ignore[method-assign]
    registry.entry_points = cache(registry.entry_points)  # type: ignore[attr-defined]
    real = torch.compile

    def compile_later(model: Any = None, **options: Any) -> Any:
        if not isfunction(model):
            return real(model, **options)
        made: list[Callable[..., Any]] = []

        @wraps(model)
        def first(*args: Any, **kwargs: Any) -> Any:
            if not made:
                made.append(real(model, **options))
            return made[0](*args, **kwargs)

        return first

    torch.compile = compile_later  # type: ignore[assignment]


class StopAfter(pl.Callback):
    """Stops training once some epochs are over, the way a user does: the schedule knows nothing of it."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch + 1 == self.epochs:
            trainer.should_stop = True

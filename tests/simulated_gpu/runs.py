"""Tiny runs of every algorithm, on the simulated device and on the CPU."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy
from safetensors.torch import load_file
from torch.autograd.graph import save_on_cpu
from torch.nn.parallel import DistributedDataParallel

from rl_lightning.algorithms import GRPO
from rl_lightning.callbacks import GroupNormalize, HFExport, Speed
from rl_lightning.data import Evaluation, RolloutDataModule
from rl_lightning.generation import Sampling
from rl_lightning.models import LoadOptions, PolicyFiles
from rl_lightning.models.noise import recompute_layers
from rl_lightning.strategies import AtomicCheckpointIO
from tests.checks import gradient_difference
from tests.invariants.spread import At, Ratios, fit, prompts, result, rollouts
from tests.simulated_gpu.counts import SEEN, phase
from tests.simulated_gpu.device import CudaTensor
from tests.support import trainer


class Phases(pl.Callback):
    """Puts what the device does down to phases of a run: `microbatch`, with its logging and its optimizer step; `generate`, `score`,
    and the rest of `collect`; `other`."""

    def __init__(self) -> None:
        self.microbatches = self.passes = self.rollouts = 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        SEEN.clear()
        collector = getattr(trainer.datamodule, "collector", None)
        if collector is None:
            return
        collector.collect = self._in("collect", collector.collect, "rollouts")
        pl_module.score = self._in("score", pl_module.score, "passes")
        generator = collector.sampler.generator
        generator.generate = self._in("generate", generator.generate)

    def _in(self, name: str, function: Any, counter: str = "") -> Any:
        def called(*args: Any, **kwargs: Any) -> Any:
            if counter:
                setattr(self, counter, getattr(self, counter) + 1)
            with phase(name):
                return function(*args, **kwargs)

        return called

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        SEEN.phase = "microbatch"

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.microbatches += 1

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        SEEN.phase = "other"


class OneRank(DDPStrategy):
    """DDP with a single rank, whose gradients go through buckets and gloo; at its end parameters are made anew on the host, as where no
    device is simulated, for DDP still holds the old ones."""

    def __init__(self) -> None:
        super().__init__(process_group_backend="gloo")

    def _setup_model(self, model: torch.nn.Module) -> DistributedDataParallel:
        wrapped = super()._setup_model(model)
        # Its own notes of times need a clock of the device, which only a build of torch for CUDA has.
        notes = SimpleNamespace(strs_map={}, ints_map={})
        wrapped.logger = SimpleNamespace(set_runtime_stats_and_log=lambda: None, _get_ddp_logging_data=lambda: notes)
        return wrapped

    def teardown(self) -> None:
        swaps = torch.__future__.get_swap_module_params_on_conversion()
        torch.__future__.set_swap_module_params_on_conversion(False)
        try:
            super().teardown()
        finally:
            torch.__future__.set_swap_module_params_on_conversion(swaps)


#: Options of a Trainer for each device.
DEVICES: dict[str, dict[str, Any]] = {"cpu": {}, "gpu": {"accelerator": "gpu"}}


def on_host(found: Any) -> Any:
    """Return results as tensors of the CPU, which any process can read."""
    return torch.utils._pytree.tree_map(lambda one: one.cpu() if isinstance(one, CudaTensor) else one, found)


def trained(device: str, name: str, policy: str, directory: Path, **settings: Any) -> dict[str, Any]:
    """Train on a device; return what two runs must agree on."""
    settings = {"max_epochs": 1} | settings
    if settings.pop("ddp", False):
        settings |= {"strategy": OneRank(), "devices": 1}
    return on_host(result(*fit(name, policy, directory / device, "float32", **DEVICES[device], **settings)))


def differences(name: str, policy: str, directory: Path, **settings: Any) -> dict[str, float]:
    """Train on both devices; return how far gradients, weights and metrics are apart."""
    SEEN.clear()
    gpu, cpu = (trained(device, name, policy, directory, **settings) for device in ("gpu", "cpu"))
    assert not SEEN.refused, SEEN.refused
    assert sum(SEEN.kernels.values()) > 100, "nothing has run on the device"
    assert gpu["logged"].keys() == cpu["logged"].keys(), gpu["logged"].keys() ^ cpu["logged"].keys()
    return {
        "gradient": gradient_difference(gpu["steps"][0], cpu["steps"][0]),
        "weights": gradient_difference(gpu["weights"], cpu["weights"]),
        "logged": max(abs(gpu["logged"][key] - value) / max(1.0, abs(value)) for key, value in cpu["logged"].items()),
    }


def gone_on(name: str, policy: str, directory: Path) -> dict[str, Any]:
    """Train on the device with a checkpoint after the first step and an export, and again from there; return both runs and the export."""
    SEEN.clear()
    keeps = {"enable_checkpointing": True, "plugins": [AtomicCheckpointIO()]}
    whole = [At(directory / "kept", [1]), HFExport(str(directory / "hf"))]
    rest = [ModelCheckpoint(directory / "other")]
    start = {"ckpt_path": directory / "kept" / "step=1.ckpt"}
    return {
        "whole": trained("gpu", name, policy, directory / "whole", callbacks=whole, **keeps),
        "rest": trained("gpu", name, policy, directory / "rest", callbacks=rest, **keeps, **start),
        "exported": load_file(directory / "hf" / "model.safetensors"),
        "refused": SEEN.refused,
    }


def waits(name: str, policy: str, directory: Path, **settings: Any) -> dict[str, Any]:
    """Train on the device with loggers; return how often the host waits, by phase, and where."""
    phases = Phases()
    logger = CSVLogger(str(directory))
    trained("gpu", name, policy, directory, callbacks=[phases, Speed()], logger=logger, limit_val_batches=0, **settings)
    assert not SEEN.refused, SEEN.refused
    found = {name: SEEN.waits_in(name) for name in ("microbatch", "collect", "score", "generate")}
    counts = {"microbatches": phases.microbatches, "passes": phases.passes, "rollouts": phases.rollouts}
    return found | counts | {"places": "\n".join(f"{name}\n{SEEN.places(name)}" for name in found)}


def offloaded(policy: str, from_outside: bool) -> dict[str, Any]:
    """Return what layers keep in the host's memory, as its device and whether it is pinned, without and with `offload`, and by how much
    the gradients of both differ."""
    kept: list[tuple[str, bool]] = []

    class Recording(save_on_cpu):  # type: ignore[misc]
        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings)
            pack = self.pack_hook

            def recorded(tensor: torch.Tensor) -> Any:
                packed = pack(tensor)
                if tensor.numel():
                    kept.append((packed[1].device.type, packed[1].is_pinned()))
                return packed

            self.pack_hook = recorded

    gradients, seen, layers = [], [], 0
    ids = torch.arange(4, 16)[None].cuda()
    for offload in (True, "offload"):
        model = PolicyFiles(policy, LoadOptions(gradient_checkpointing=False if from_outside else offload)).load()
        layers = len(model.model.layers)
        with mock.patch("rl_lightning.models.noise.save_on_cpu", Recording):
            if from_outside:
                with mock.patch("rl_lightning.models.noise.GradientCheckpointingLayer", type(None)):
                    recompute_layers(model, offload == "offload")
            model.cuda()(ids).logits.square().mean().backward()
        gradients.append({name: on_host(parameter.grad) for name, parameter in model.named_parameters()})
        seen.append(list(kept))
    return {"layers": layers, "without": seen[0], "kept": seen[1], "difference": gradient_difference(*gradients)}


def ratios(name: str, policy: str, directory: Path, **settings: Any) -> tuple[list[torch.Tensor], list[str]]:
    """Train on the device; return the ratios of each microbatch, and what CUDA would have refused."""
    SEEN.clear()
    seen = Ratios()
    trained("gpu", name, policy, directory, callbacks=[seen], **settings)
    return on_host(seen.seen), SEEN.refused


def evaluated(device: str, policy: str, directory: Path, reward: Any = None) -> tuple[dict[str, float], list[Any]]:
    """Validate and predict on a device; return the metrics, and the ids and rewards of the predictions."""
    SEEN.clear()
    data = rollouts() if reward is None else rollouts_for(reward)
    module = GRPO(policy=policy, load=LoadOptions(dtype="float32"))
    run = trainer(directory, [GroupNormalize()], online=False, limit_val_batches=2, **DEVICES[device])
    (found,) = run.validate(module, datamodule=data, verbose=False)
    predicted = run.predict(module, datamodule=data)
    assert not SEEN.refused, SEEN.refused
    return found, [(one.input_ids.tolist(), one.rewards.tolist()) for one in predicted]


def rollouts_for(reward: Any) -> RolloutDataModule:
    """Return data whose responses are scored by another reward."""
    sampling = Sampling(max_new_tokens=7)
    sizes = {"prompts_per_rollout": 4, "group_size": 4}
    return RolloutDataModule(
        prompts=prompts(),
        evaluation=Evaluation(2, prompts_per_batch=2),
        sampling=sampling,
        rewards=[reward],
        seed=3,
        **sizes,
    )

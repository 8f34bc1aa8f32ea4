"""Fully sharded data parallelism (FSDP2): Lightning's `ModelParallelStrategy`, set up for the algorithms."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeGuard

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from rl_lightning.errors import UserError
from rl_lightning.strategies.checkpoints import load_plain
from rl_lightning.strategies.checksums import check_directory, write_checksums
from rl_lightning.strategies.sharding import whole
from rl_lightning.typed import Typed


class FSDP2Strategy(ModelParallelStrategy, metaclass=Typed):
    """Every rank holds a share of each parameter, gradient and optimizer state, of policy, reference and critic alike.

    A layer is gathered when the forward or backward pass reaches it. For sampling the whole policy is gathered, once a rollout
    (see `rl_lightning.strategies.gathered`), so it must fit on one device beside the shares.

    A checkpoint is one file by default, the same as without sharding. From the end of an epoch a run can go on from it with
    another number of devices or another strategy. With `save_distributed_checkpoint` it is a directory to which all ranks
    write their shares at the same time: faster for large models, but it can be loaded by the same number of ranks only.

    Args:
        save_distributed_checkpoint: write checkpoints as directories of shares.
        gather_dtype: precision in which parameters are gathered and layers computed; gradients are reduced in float32. The
            parameters' own if null. Beside `precision: bf16-mixed`, `bfloat16` halves the bytes that are sent.
        **options: process_group_backend, timeout: see `ModelParallelStrategy`.
    """

    def __init__(
        self,
        save_distributed_checkpoint: bool = False,
        gather_dtype: Literal["bfloat16", "float16"] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(save_distributed_checkpoint=save_distributed_checkpoint, **options)
        #: Further options of torch's `fully_shard`; read by `rl_lightning.strategies.place`.
        self.shard_options: dict[str, MixedPrecisionPolicy] = {}
        if gather_dtype is not None:
            dtype = getattr(torch, gather_dtype)
            self.shard_options["mp_policy"] = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)

    def setup_environment(self) -> None:
        """Shard over all devices of all nodes."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        self._tensor_parallel_size = 1
        super().setup_environment()

    def setup(self, trainer: Trainer) -> None:
        """Set up, after a check that all trainable parameters are sharded. Others would differ from rank to rank after a step.

        Raises:
            UserError: names a parameter that `configure_model` did not give to `place`.
        """
        assert self.model is not None
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and not isinstance(parameter, DTensor):
                raise UserError(
                    f"{type(self.model).__name__}.{name} is trained but not sharded: load its model in configure_model() as "
                    "self.placed(model)"
                )
        super().setup(trainer)

    # -------------------------------------------------------------- checkpoints

    def lightning_module_state_dict(self) -> dict[str, object]:
        """Return the weights: this rank's share of them, or, for a checkpoint in one file, all on rank 0 and none elsewhere."""
        if self._save_distributed_checkpoint:
            return super().lightning_module_state_dict()
        assert self.model is not None
        return self._whole_on_rank_zero(self.model.state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the optimizer's state: this rank's share of it, or all on rank 0 and none elsewhere."""
        if self._save_distributed_checkpoint:
            return super().optimizer_state(optimizer)
        return self._whole_on_rank_zero(optimizer.state_dict())

    def _whole_on_rank_zero(self, state: Mapping[str, object]) -> dict[str, Any]:
        """Gather tensor by tensor, so that no device holds more than one whole tensor at a time."""

        def gather(value: object) -> object:
            if not isinstance(value, Tensor):
                return value
            full = whole(value.detach())
            return full.cpu() if self.is_global_zero else None

        result: dict[str, Any] = tree_map(gather, dict(state))
        return result if self.is_global_zero else {}

    def save_checkpoint(
        self, checkpoint: dict[str, object], filepath: str | Path, storage_options: object = None
    ) -> None:
        """Save. A directory of shares is written under another name, and replaces its predecessor once it is complete."""
        if not self._save_distributed_checkpoint:
            super().save_checkpoint(checkpoint, filepath, storage_options)
            return
        path = Path(self.broadcast(filepath))
        unfinished = path.with_name(f".{path.name}.unfinished")
        self._as_rank_zero(lambda: _remove(unfinished))
        super().save_checkpoint(checkpoint, unfinished, storage_options)
        self.barrier()
        write_checksums(unfinished)
        self._as_rank_zero(lambda: _replace(path, unfinished))

    def _as_rank_zero(self, action: Callable[[], object]) -> None:
        if self.is_global_zero:
            action()
        self.barrier()

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Load a file, or a directory of shares, into the sharded model and optimizers; return the rest of its contents.

        Raises:
            UserError: if it is damaged, or not a checkpoint of this model.
        """
        path = Path(self.broadcast(checkpoint_path))
        if weights_only is False:
            raise UserError("weights_only: false would let a checkpoint run code, and none needs that: leave it out")
        if path.is_dir():
            check_directory(path)
            return super().load_checkpoint(path, weights_only=True)
        checkpoint: dict[str, Any] = load_plain(path, mmap=True, map_location="cpu")
        assert self.model is not None
        own = dict(self.model.state_dict())
        state = checkpoint.pop("state_dict")
        self.model.load_state_dict({name: _shared(value, own.get(name)) for name, value in state.items()})
        for optimizer, saved in zip(self.optimizers, checkpoint.get("optimizer_states", []), strict=False):
            optimizer.load_state_dict(_shared_state(saved, optimizer))
        return checkpoint


def _shared(value: Tensor, like: object) -> Tensor:
    """Return this rank's share of a whole tensor, sharded like `like`; the tensor itself if `like` is not sharded."""
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value.to(like.device, like.dtype), like.device_mesh, like.placements)


def _shared_state(saved: dict[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """Return an optimizer's saved state, its moments sharded like their parameters."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = {
        number: {
            name: _shared(value, parameters[number]) if _is_moment(value) else value for name, value in entry.items()
        }
        for number, entry in saved["state"].items()
    }
    return {**saved, "state": state}


def _is_moment(value: object) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.dim() > 0


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _replace(path: Path, finished: Path) -> None:
    """Put a directory in the place of another. At any moment one of the two is complete, under `path` or `.NAME.previous`."""
    previous = path.with_name(f".{path.name}.previous")
    _remove(previous)
    if path.exists():
        path.rename(previous)
    finished.rename(path)
    _remove(previous)

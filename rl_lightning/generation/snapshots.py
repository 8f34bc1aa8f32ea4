"""The weights of a policy on their way to an engine: directories that are whole, one for each version."""

from __future__ import annotations

import copy
import shutil
import socket
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor, nn

from rl_lightning.errors import UserError
from rl_lightning.models import is_adapted, merged_weights
from rl_lightning.strategies import from_every_rank, full_state_dict

ValueT = TypeVar("ValueT")


def save_snapshot(model: nn.Module, weights: Mapping[str, Tensor], directory: Path) -> None:
    """Save a policy such that vLLM can load it, and reload it when the weights have changed.

    A head that shares its weights with the embeddings is saved on its own: on a CPU vLLM packs it anew for its kernels, and
    would not look for it again while reloading, so that it would stay as it first was (seen with 0.32).

    Args:
        model: the policy; it says what it is.
        weights: all of them, whole; an adapter is merged.
        directory: made, if it is not there.

    Raises:
        UserError: if it cannot be written to.
    """
    policy: Any = model
    whole = merged_weights(model, weights) if is_adapted(model) else dict(weights)
    try:
        policy.save_pretrained(directory, state_dict=whole)
        config = copy.deepcopy(policy.config)
        for part in (config, config.get_text_config()):
            part.tie_word_embeddings = False
        config.save_pretrained(directory)
    except OSError as error:
        raise UserError(f"cannot write the policy to {directory} for vLLM: {error.strerror or error}") from error


class Snapshots:
    """A place for snapshots: the latest one is there, and no other.

    Args:
        directory: where to; a temporary one if None.
        shared: one process writes for all ranks, into a directory that all of them see; if not, one on each machine does.
    """

    def __init__(self, directory: str | None, shared: bool) -> None:
        self.directory = directory
        self.shared = shared
        self._place: tempfile.TemporaryDirectory[str] | None = None
        self._count = 0

    def write(self, model: nn.Module) -> tuple[Path, bool]:
        """Write a snapshot; every rank must call this, with the model whole.

        Returns:
            Where it is, on this rank's machine, and whether this rank wrote it.

        Raises:
            UserError: on every rank, if it could not be written on one.
        """
        weights = full_state_dict(model)
        hosts = from_every_rank("" if self.shared else socket.gethostname())
        writer = hosts.index(hosts[own_rank()])
        writes = writer == own_rank()
        places = together(lambda: self._write(model, weights) if writes else "")
        return Path(places[writer]), writes

    def _write(self, model: nn.Module, weights: Mapping[str, Tensor]) -> str:
        if self._place is None:
            self._place = _own_directory(self.directory)
        self._count += 1
        # A whole path: whoever reads there may have another working directory.
        target = Path(self._place.name).resolve() / f"weights-{self._count}"
        save_snapshot(model, weights, target)
        return str(target)

    def forget(self, snapshot: Path) -> None:
        """Remove every other snapshot, once this one has been read everywhere."""
        if self._place is not None:
            for other in Path(self._place.name).resolve().glob("weights-*"):
                if other != snapshot:
                    shutil.rmtree(other, ignore_errors=True)

    def close(self) -> None:
        """Remove what was written."""
        if self._place is not None:
            self._place.cleanup()
            self._place = None


def _own_directory(parent: str | None) -> tempfile.TemporaryDirectory[str]:
    """Return a new directory, which goes with the process at the latest."""
    try:
        if parent is not None:
            Path(parent).mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(prefix="rl_lightning-", dir=parent, ignore_cleanup_errors=True)
    except OSError as error:
        raise UserError(f"generator.directory {parent}: cannot make a directory there: {error.strerror}") from error


def own_rank() -> int:
    """Return the number of this process among the ranks."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def number_of_ranks() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def together(action: Callable[[], ValueT]) -> list[ValueT]:
    """Do something on every rank, and return what came of it, by rank; every rank must call this.

    Raises:
        UserError: on every rank, if it was raised on one: no rank waits for another that has given up.
    """
    value, failure = None, None
    try:
        value = action()
    except UserError as error:
        failure = str(error)
    outcomes: list[tuple[Any, str | None]] = from_every_rank((value, failure))
    for _, reason in outcomes:
        if reason is not None:
            raise UserError(reason)
    return [outcome for outcome, _ in outcomes]

"""Handing weights to an engine through the file system: one complete model directory for each version."""

from __future__ import annotations

import copy
import shutil
import socket
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from torch import Tensor, nn
from transformers import PreTrainedModel

from rl_lightning.errors import UserError
from rl_lightning.models import save_plain
from rl_lightning.strategies import from_every_rank, full_state_dict, own_rank, together


def save_snapshot(model: nn.Module, weights: Mapping[str, Tensor], directory: Path) -> None:
    """Save a policy in a form that vLLM can load, and reload after an update.

    A head that shares its weights with the embeddings is saved as a tensor of its own. On a CPU, vLLM packs the head into
    another format for its kernels, and does not look for tied weights when it reloads, so the head would keep its first
    weights (seen with 0.32).

    Args:
        model: the policy; its configuration is saved.
        weights: all weights, gathered; an adapter's are merged into them.
        directory: where to; made if it is not there.

    Raises:
        UserError: if the directory cannot be written to.
    """
    policy = cast(PreTrainedModel, model)
    try:
        save_plain(policy, weights, directory)
        config = copy.deepcopy(policy.config)
        for part in (config, config.get_text_config()):
            part.tie_word_embeddings = False
        config.save_pretrained(directory)
    except OSError as error:
        raise UserError(f"cannot write the policy to {directory} for vLLM: {error.strerror or error}") from error


class Snapshots:
    """A directory that holds the latest snapshot, and no older one.

    Args:
        directory: parent directory; the system's for temporary files if None.
        shared: rank 0 writes for all ranks, into a directory that all of them see. If False, one rank of each machine writes.
    """

    def __init__(self, directory: str | None, shared: bool) -> None:
        self.directory = directory
        self.shared = shared
        self._place: tempfile.TemporaryDirectory[str] | None = None
        self._count = 0

    def write(self, model: nn.Module) -> tuple[Path, bool]:
        """Write a snapshot. All ranks call this together.

        Returns:
            Its path, as this rank's machine sees it, and whether this rank wrote it.

        Raises:
            UserError: on every rank, if one of them could not write.
        """
        hosts = from_every_rank("" if self.shared else socket.gethostname())
        writer = hosts.index(hosts[own_rank()])
        writes = writer == own_rank()
        weights = full_state_dict(model, here=writes)
        places = together(lambda: self._write(model, weights) if writes else "")
        return Path(places[writer]), writes

    def _write(self, model: nn.Module, weights: Mapping[str, Tensor]) -> str:
        if self._place is None:
            self._place = _own_directory(self.directory)
        self._count += 1
        # An absolute path: the server that reads it may have another working directory.
        target = Path(self._place.name).resolve() / f"weights-{self._count}"
        save_snapshot(model, weights, target)
        return str(target)

    def forget(self, snapshot: Path) -> None:
        """Remove all snapshots but this one, which every engine has read by now."""
        if self._place is not None:
            for other in Path(self._place.name).resolve().glob("weights-*"):
                if other != snapshot:
                    shutil.rmtree(other, ignore_errors=True)

    def close(self) -> None:
        """Remove the directory with the snapshots."""
        if self._place is not None:
            self._place.cleanup()
            self._place = None


def _own_directory(parent: str | None) -> tempfile.TemporaryDirectory[str]:
    """Return a new directory below `parent`, removed when the process ends at the latest."""
    try:
        if parent is not None:
            Path(parent).mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(prefix="rl_lightning-", dir=parent, ignore_cleanup_errors=True)
    except OSError as error:
        raise UserError(f"generator.directory {parent}: cannot make a directory there: {error.strerror}") from error

"""A trained model, from wherever a run has left it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from rl_lightning.algorithms import PolicyModule
from rl_lightning.algorithms.training import TrainedModule
from rl_lightning.callbacks.hf_export import DIRECTORY as EXPORT
from rl_lightning.errors import UserError
from rl_lightning.strategies import load_plain
from rl_lightning.typed import described


def load(path: str | Path, **options: Any) -> TrainedModule:
    """Return a trained module, ready to `generate`.

    Args:
        path: of a checkpoint (`.ckpt`), a directory in Hugging Face format, or the `default_root_dir` of a run. Of a run, the
            exported model is taken, else its newest checkpoint.
        **options: of the module, in place of those that it was trained with.

    Returns:
        The module that the checkpoint was made of; a `PolicyModule` for a model in Hugging Face format.

    Raises:
        UserError: if there is no model at the path, or the checkpoint is damaged or was made by another version.

    Example:
        >>> load("runs/grpo").generate("3+9-4=")  # doctest: +SKIP
        '12;8#8'
    """
    if not isinstance(path, str | os.PathLike):
        raise UserError(f"load takes the path of a model, not {described(path)}")
    place = _model_at(Path(path).expanduser())
    if place.is_dir():
        return PolicyModule(policy=str(place), **options)
    checkpoint = load_plain(place, mmap=True, map_location="cpu")
    name = checkpoint.get("class_path") if isinstance(checkpoint, dict) else None
    if name is None:
        raise UserError(
            f"{place} does not say what it is a checkpoint of: call load_from_checkpoint({str(place)!r}, policy=...) of its class"
        )
    module: TrainedModule = _class_of(name, place).load_from_checkpoint(place, map_location="cpu", **options)
    return module.eval()


def _model_at(path: Path) -> Path:
    """Return the model directory or checkpoint that a path stands for."""
    if not path.exists():
        raise UserError(f"there is no {path}: give a checkpoint, a model directory, or the default_root_dir of a run")
    if path.is_file() or (path / "config.json").is_file():
        return path
    if (path / EXPORT / "config.json").is_file():
        return path / EXPORT
    found = [one for one in [*path.glob("*.ckpt"), *path.glob("checkpoints/*.ckpt")] if one.is_file()]
    if not found:
        raise UserError(f"{path} holds neither an exported model ({EXPORT}/) nor a checkpoint (checkpoints/*.ckpt)")
    return max(found, key=lambda one: one.stat().st_mtime_ns)


def _class_of(name: str, place: Path) -> type[TrainedModule]:
    """Return the class that a checkpoint names. A module that is not loaded is not imported: a file must not choose what code runs."""
    module, _, kind = name.rpartition(".")
    found = getattr(sys.modules.get(module), kind, None)
    if not (isinstance(found, type) and issubclass(found, TrainedModule)):
        raise UserError(
            f"{place} was made by {name}, which is not loaded: import {module} first, or call {kind}.load_from_checkpoint"
        )
    return found

"""What a run leaves behind, and whether two runs left the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event

from rl_lightning.strategies import load_plain

#: Curves that measure this machine, not the run.
CLOCKS = ("time/", "speed/")


def result(directory: Path) -> dict[str, Any]:
    """Return the last checkpoint, all curves and tables, and the exported model of a finished run.

    The checkpoint is `StepCheckpoint`'s: Lightning's own callback writes a last one after the end if it has not yet in this process.
    """
    checkpoint = load_plain(newest(directory / "steps", "last*.ckpt"))
    # A run's own paths, and what Lightning's checkpoint callbacks know of them.
    checkpoint["callbacks"] = {
        name: state for name, state in checkpoint["callbacks"].items() if "Checkpoint" not in name
    }
    return {
        "checkpoint": checkpoint,
        "curves": curves(directory),
        "export": load_file(directory / "hf" / "model.safetensors"),
    }


def newest(directory: Path, pattern: str) -> Path:
    """Return the file under a directory that was written last."""
    return max(directory.rglob(pattern), key=lambda path: path.stat().st_mtime_ns)


def curves(directory: Path) -> dict[str, dict[int, Any]]:
    """Return tag → step → value of everything in TensorBoard's files, which may be those of several attempts.

    Raises:
        ValueError: if two attempts logged different values under the same tag and step.
    """
    found: dict[str, dict[int, Any]] = {}
    for path in sorted(directory.rglob("events.out.tfevents.*")):
        for step, value in _values(path):
            if value.tag.startswith(CLOCKS) or value.tag == "_hparams_/session_start_info":
                continue
            content = value.tensor.SerializeToString() + value.histo.SerializeToString() or value.simple_value
            known = found.setdefault(value.tag, {}).setdefault(step, content)
            if known != content:
                raise ValueError(f"{value.tag} at step {step} was logged as {known!r} and as {content!r}")
    return found


def _values(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield what one file holds, up to where a kill may have cut it off."""
    for record in RawEventFileLoader(str(path)).Load():
        event = Event.FromString(record)
        for value in event.summary.value:
            yield event.step, value


def first_difference(actual: Any, expected: Any, place: str = "") -> str | None:
    """Return where two results differ to the last bit, None if nowhere."""
    if isinstance(expected, torch.Tensor):
        same = isinstance(actual, torch.Tensor) and actual.dtype == expected.dtype and torch.equal(actual, expected)
        return None if same else place
    if isinstance(expected, dict):
        if not isinstance(actual, dict) or actual.keys() != expected.keys():
            odd = set(actual) ^ set(expected) if isinstance(actual, dict) else actual
            return f"{place}: {sorted(odd, key=str)[:5] if isinstance(odd, set) else odd}"
        pairs = [(actual[key], value, f"{place}/{key}") for key, value in expected.items()]
    elif isinstance(expected, (list, tuple)):
        if not isinstance(actual, (list, tuple)) or len(actual) != len(expected):
            return place
        pairs = [
            (one, other, f"{place}/{number}") for number, (one, other) in enumerate(zip(actual, expected, strict=True))
        ]
    else:
        return None if actual == expected else f"{place}: {actual!r:.100} instead of {expected!r:.100}"
    return next((found for one in pairs if (found := first_difference(*one))), None)

"""Results of a finished run, and a bit-for-bit comparison of two."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event

from rl_lightning.strategies import load_plain

#: Curves of times and speeds, which differ between identical runs.
CLOCKS = ("time/", "speed/")


def result(directory: Path) -> dict[str, Any]:
    """Return the last checkpoint, all curves and tables, and the exported model of a finished run."""
    checkpoint = last_checkpoint(directory)
    # Without the run's own paths, which are also in the state of Lightning's checkpoint callbacks.
    checkpoint["callbacks"] = {
        name: state for name, state in checkpoint["callbacks"].items() if "Checkpoint" not in name
    }
    for metrics in (
        checkpoint.get("metrics_of_callbacks", {}),
        checkpoint.get("metrics_of_this_step", {}).get("metrics", {}),
    ):
        for name in [name for name in metrics if name.startswith(CLOCKS)]:
            del metrics[name]
    return {
        "checkpoint": checkpoint,
        "curves": curves(directory),
        "export": load_file(directory / "hf" / "model.safetensors"),
    }


def last_checkpoint(directory: Path) -> dict[str, Any]:
    """Return the checkpoint after the last optimizer step of a run.

    Two callbacks write one. If a run is killed between the two, it has nothing left to do when it resumes, and the second
    checkpoint stays at an earlier step. If both are of the last step, `StepCheckpoint`'s, in `steps`, is taken: Lightning's own
    callback may write another one after the end.
    """
    found = [(load_plain(path), path) for path in directory.rglob("last*.ckpt")]
    checkpoint: dict[str, Any] = max(
        found, key=lambda one: (one[0]["global_step"], one[1].parent.name == "steps", one[1].stat().st_mtime_ns)
    )[0]
    return checkpoint


def curves(directory: Path) -> dict[str, dict[int, Any]]:
    """Return tag → step → value of everything in TensorBoard's files, over all attempts of a run.

    Raises:
        ValueError: if two attempts logged different values under the same tag and step.
    """
    found: dict[str, dict[int, Any]] = {}
    for path in sorted(directory.rglob("events.out.tfevents.*")):
        for step, value in _values(path):
            if value.tag.startswith(CLOCKS) or value.tag == "_hparams_/session_start_info":
                continue
            number = "nan" if math.isnan(value.simple_value) else value.simple_value
            content = value.tensor.SerializeToString() + value.histo.SerializeToString() or number
            known = found.setdefault(value.tag, {}).setdefault(step, content)
            if known != content:
                raise ValueError(f"{value.tag} at step {step} was logged as {known!r} and as {content!r}")
    return found


def _values(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield the events of one file, up to where a kill may have cut it off."""
    for record in RawEventFileLoader(str(path)).Load():
        event = Event.FromString(record)
        for value in event.summary.value:
            yield event.step, value


def first_difference(actual: Any, expected: Any) -> str | None:
    """Return the first difference of two results, bit for bit; None if they are identical."""
    return next(differences(actual, expected), None)


def differences(actual: Any, expected: Any, place: str = "") -> Iterator[str]:
    """Yield a line for every place where two results are not identical bit for bit."""
    if isinstance(expected, torch.Tensor):
        if not isinstance(actual, torch.Tensor) or (actual.dtype, actual.shape) != (expected.dtype, expected.shape):
            yield f"{place}: {_shown(actual)} instead of {_shown(expected)}"
        elif not torch.equal(_bits(actual), _bits(expected)):
            apart = (actual.double() - expected.double()).abs()
            yield f"{place}: {int((apart != 0).sum())} of {apart.numel()} elements differ, by {float(apart.max()):.3g} at most"
    elif isinstance(expected, dict):
        if not isinstance(actual, dict):
            yield f"{place}: {_shown(actual)} instead of a dictionary"
            return
        for key in sorted(actual.keys() ^ expected.keys(), key=str):
            yield f"{place}/{key}: {'too much' if key in actual else 'missing'}"
        for key in expected.keys() & actual.keys():
            yield from differences(actual[key], expected[key], f"{place}/{key}")
    elif isinstance(expected, (list, tuple)):
        if not isinstance(actual, (list, tuple)) or len(actual) != len(expected):
            yield f"{place}: {_shown(actual)} instead of {_shown(expected)}"
            return
        for number, (one, other) in enumerate(zip(actual, expected, strict=True)):
            yield from differences(one, other, f"{place}/{number}")
    elif actual != expected and not (actual != actual and expected != expected):  # two NaN count as equal
        yield f"{place}: {_shown(actual)} instead of {_shown(expected)}"


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.cpu().contiguous().reshape(-1).view(torch.uint8)


def _shown(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor {tuple(value.shape)} of {value.dtype}"
    return f"{value!r:.100}"

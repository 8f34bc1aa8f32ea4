"""On-disk cache of expensive results, keyed by a hash of the settings they follow from."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import marshal
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from types import FunctionType
from typing import Any

from torch import Tensor

from rl_lightning.environments.spec import BoundEnvironment
from rl_lightning.errors import UserError
from rl_lightning.rewards import Rewarder
from rl_lightning.rewards.bound import BoundReward
from rl_lightning.rewards.pickled import called, references
from rl_lightning.strategies import atomic_save, from_every_rank, load_plain

log = logging.getLogger(__name__)


def settings_key(settings: object) -> str:
    """Return 16 hexadecimal digits that differ when any part of some plain settings differs.

    Args:
        settings: dictionaries, lists, strings and numbers; anything else counts by its `repr`.
    """
    text = json.dumps(settings, sort_keys=True, default=repr, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def tensors_key(tensors: Sequence[Tensor]) -> str:
    """Return a hash of some tensors' shapes and values."""
    whole = hashlib.sha256()
    for tensor in tensors:
        whole.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        whole.update(tensor.cpu().contiguous().numpy().tobytes())
    return whole.hexdigest()[:16]


def rewards_key(rewarder: Rewarder) -> list[object]:
    """Return what rewards are made of: names, weights, arguments, and the text of their functions with what that refers to.

    What a function of a module calls is not in it; a file or directory that an argument names is, by its size and time.
    """
    return [
        [reward.name, reward.weight, _function_text(reward), dict(reward.arguments), _files(reward)]
        for reward in rewarder.rewards
    ]


def environment_key(environment: BoundEnvironment) -> list[object]:
    """Return what an environment is made of: its settings, and the text of its function and tools with what that refers to, where
    these are not given by a path."""
    spec = environment.spec
    functions = [
        _text(called(part)) if isinstance(given, str) else _with_references(part)
        for given, part in zip([spec.function, *spec.tools], [environment.function, *environment.tools], strict=True)
    ]
    plain = {item.name: getattr(spec, item.name) for item in fields(spec) if item.name not in ("function", "tools")}
    return [spec.name, plain, functions]


def _function_text(reward: BoundReward) -> object:
    """Return the text of a function; of one that was not given by a path also what it encloses, and what its module holds of it."""
    return _text(reward.here) if reward.path is not None or reward.in_process else _with_references(reward.here)


def _with_references(thing: object, depth: int = 4) -> object:
    parts = references(thing) if depth and callable(thing) else ()
    inner = {name: _with_references(part, depth - 1) for name, part in parts}
    return [_text(thing), inner] if callable(thing) else thing


def _text(function: Callable[..., object]) -> str:
    name = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', type(function).__qualname__)}"
    try:
        return name + inspect.getsource(function)
    except (OSError, TypeError):  # made in an interactive session, or no plain function
        return name + (marshal.dumps(function.__code__).hex() if isinstance(function, FunctionType) else "")


def _files(reward: BoundReward) -> list[object]:
    named = [value for value in reward.arguments.values() if isinstance(value, str) and value]
    paths = [
        Path(value) for value in named if os.path.exists(value)
    ]  # unlike `Path.exists`, not an error for a long text
    inside = [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    return [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in inside if file.is_file()]


class Cache:
    """Files of tensors and plain containers in a directory, the same for all ranks.

    Args:
        directory: made when something is put there.
        rank: of this process; 0 writes, and says so.
    """

    def __init__(self, directory: Path, rank: int) -> None:
        self.directory = directory
        self.rank = rank

    def path(self, kind: str, key: str) -> Path:
        """Return where something is kept."""
        return self.directory / f"{kind}-{key}.pt"

    def load(self, kind: str, key: str) -> dict[str, Any] | None:
        """Return what is kept under a key if every rank can read it, else None; every rank must call this."""
        path = self.path(kind, key)
        found = self._read(path) if path.exists() else None
        if not all(from_every_rank(found is not None)):
            return None
        if self.rank == 0:
            log.info("%s are taken from %s", kind.capitalize(), path)
        return found

    def load_part(self, kind: str, key: str, number: int) -> dict[str, Any] | None:
        """Return a part of something unfinished, if this rank can read it."""
        path = self._part(kind, key, number)
        return self._read(path) if path.exists() else None

    def save_part(self, kind: str, key: str, number: int, value: dict[str, object]) -> None:
        """Keep a part, which this rank has made, until the whole is there."""
        atomic_save({"whole": True, "value": value}, self._part(kind, key, number))

    def _part(self, kind: str, key: str, number: int) -> Path:
        return self.directory / f"{kind}-{key}.parts" / f"{number}.pt"

    def _read(self, path: Path) -> dict[str, Any] | None:
        try:
            kept = load_plain(path)
        except (UserError, OSError) as error:  # torch reports some cut-off files as a bad seek
            log.warning("%s cannot be used (%s); it is made anew", path, error)
            return None
        if not isinstance(kept, dict) or kept.get("whole") is not True:
            log.warning("%s is no file of this cache; it is made anew", path)
            return None
        value: dict[str, Any] = kept["value"]
        return value

    def save(self, kind: str, key: str, value: dict[str, object]) -> None:
        """Keep something, which every rank has, and remove its parts; every rank must call this."""
        if self.rank == 0:
            atomic_save({"whole": True, "value": value}, self.path(kind, key))
            log.info("%s are kept in %s", kind.capitalize(), self.path(kind, key))
        from_every_rank(None)  # the whole is there
        # Ranks may have caches of their own; where they share one, the first to come removes all.
        shutil.rmtree(self.directory / f"{kind}-{key}.parts", ignore_errors=True)

"""Results on disk, each under a hash of everything that it follows from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

T = TypeVar("T")


def key_of(*parts: object) -> str:
    """Return a hash of values with a faithful `repr`."""
    return hashlib.sha256(json.dumps([repr(part) for part in parts]).encode()).hexdigest()[:10]


def kept(path: Path, make: Callable[[], T]) -> T:
    """Return what is in a file; what `make` returns, which is then in it, if there is no such file.

    The file appears only once it is complete, so that an interrupted stage is made anew.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        torch.save(make(), part)
        part.rename(path)
    found: T = torch.load(path, weights_only=False)
    return found

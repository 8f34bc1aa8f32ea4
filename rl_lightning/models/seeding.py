"""Random initial weights that depend on the run's seed and on nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def seeded() -> Iterator[None]:
    """Restart torch's random numbers from the run's seed inside this context; afterwards they go on as if nothing was drawn."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(torch.initial_seed())
        yield

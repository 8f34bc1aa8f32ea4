"""Random initial weights that do not depend on what was drawn before."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def seeded() -> Iterator[None]:
    """Inside, random numbers are a function of the run's seed alone; outside, they go on as if nothing was drawn."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(torch.initial_seed())
        yield

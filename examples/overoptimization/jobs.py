"""Jobs side by side, each in a process with one thread, with a progress bar."""

from __future__ import annotations

import logging
import multiprocessing
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

import torch
from tqdm.auto import tqdm


def quietly() -> None:
    """Compute with one thread, and log nothing but errors of the library's runs."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "rl_lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)


def side_by_side(
    work: Callable[..., None], waves: Sequence[Sequence[tuple[Any, ...]]], parallel: int, unit: str = "stage"
) -> None:
    """Do jobs, wave after wave.

    Args:
        work: does a job, and leaves its result on disk.
        waves: arguments of jobs; those of a wave need no other of it.
        parallel: jobs at a time; with 1 they are done in this process.
        unit: what the progress bar calls a job.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tqdm(total=sum(map(len, waves)), unit=unit) as bar:
        if parallel == 1:
            quietly()
            for job in (job for wave in waves for job in wave):
                work(*job)
                bar.update()
            return
        with ProcessPoolExecutor(parallel, multiprocessing.get_context("spawn"), initializer=quietly) as pool:
            for wave in waves:
                for done in as_completed([pool.submit(work, *job) for job in wave]):
                    done.result()
                    bar.update()

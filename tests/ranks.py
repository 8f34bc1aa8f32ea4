"""Processes that stay: every check on two gloo ranks runs in the same pair, one after the other."""

from __future__ import annotations

import os
import pickle
import traceback
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only

from tests.processes import Warm
from tests.support import spare_repetition

SIZE = 2


def meet(rank: int, meeting: str) -> None:
    """Join the process group of the ranks."""
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0"}
    rank_zero_only.rank = rank
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=SIZE)


class Ranks:
    """Calls functions on two ranks of one process group, or in as many processes as are prepared in another way.

    The pair is started by the first call and serves all others; after a failure the next call starts another. A Trainer with
    `devices=2` in such a function finds its group there, as under a launcher, and starts no process of its own.

    Args:
        directory: where the ranks meet and print.
        size: how many there are.
        prepare: called with the rank and the address of the meeting, in each process before the first check.
    """

    def __init__(self, directory: Path, size: int = SIZE, prepare: Callable[[int, str], None] = meet) -> None:
        self._directory, self._pairs = directory, 0
        self._size, self._prepare = size, prepare
        self._processes: list[Warm] = []
        self._pipes: list[Connection] = []

    def __call__(self, check: Callable[..., Any], *arguments: Any, timeout_s: float = 600, **named: Any) -> list[Any]:
        """Call a function of a module on both ranks, with the same arguments, and return what it returned on each.

        Raises:
            AssertionError: one raised, ended or took too long; with what it said.
        """
        if not self._processes:
            self._start()
        for pipe in self._pipes:
            pipe.send_bytes(pickle.dumps((check, arguments, named)))
        results: dict[int, Any] = {}
        while len(results) < self._size:
            waiting = [pipe for rank, pipe in enumerate(self._pipes) if rank not in results]
            ready = wait(waiting, timeout_s)
            errors = [self._answer(pipe, results) for pipe in ready]
            if any(errors):
                # What one rank says may follow from what befell another, which is heard a moment later.
                errors += [self._answer(pipe, results) for pipe in waiting if pipe not in ready and pipe.poll(0.5)]
                self._fail("\n".join(filter(None, errors)))
            if not ready:
                self._fail(f"no answer in {timeout_s} s")
        return [results[rank] for rank in range(self._size)]

    def _answer(self, pipe: Connection, results: dict[int, Any]) -> str | None:
        """Take a rank's answer; return what it failed of."""
        rank = self._pipes.index(pipe)
        try:
            error, results[rank] = pickle.loads(pipe.recv_bytes())
        except EOFError:
            error = "its process has ended"
        return f"rank {rank}: {error}" if error else None

    def printed(self, rank: int) -> str:
        """Return what a rank of this pair has printed so far."""
        return self._log(rank).read_text() if self._processes else ""

    def close(self) -> None:
        """End both."""
        for process in self._processes:
            process.kill()
            process.wait()
        for pipe in self._pipes:
            pipe.close()
        self._processes, self._pipes = [], []

    def _log(self, rank: int) -> Path:
        return self._directory / f"pair{self._pairs}-rank{rank}.log"

    def _start(self) -> None:
        self._pairs += 1
        for rank in range(self._size):
            own, theirs = Pipe()
            meeting = f"file://{self._directory}/pair{self._pairs}"
            self._processes.append(Warm(_serve, rank, meeting, theirs, self._prepare, output=self._log(rank)))
            self._pipes.append(own)
            theirs.close()

    def _fail(self, said: str) -> None:
        tails = [f"--- rank {rank} printed\n{self.printed(rank)[-3000:]}" for rank in range(self._size)]
        self.close()
        raise AssertionError("\n".join([said, *tails]))


def _serve(rank: int, meeting: str, pipe: Connection, prepare: Callable[[int, str], None]) -> None:
    """Answer calls until the other end is closed."""
    torch.set_num_threads(1)
    spare_repetition()
    prepare(rank, meeting)
    while True:
        try:
            check, arguments, named = pickle.loads(pipe.recv_bytes())
        except EOFError:
            return
        torch.manual_seed(0)
        error = result = None
        try:
            result = check(*arguments, **named)
        except BaseException:
            error = traceback.format_exc()
        pipe.send_bytes(pickle.dumps((error, result)))

"""Worker processes that can be killed, for reward functions that may hang, crash or eat memory.

pool.py       WorkerPool: makes calls in workers
crew.py       the workers of a pool, and the functions that they know
dispatch.py   hands calls to workers, gathers outcomes, replaces workers that hang or die
process.py    Worker: one process as its parent sees it
messages.py   what the two say to each other
worker.py     the process itself, and its keeper
calls.py      how it makes calls
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence

from rl_lightning.errors import UserError
from rl_lightning.rewards.crew import Crew, Function, kill_all
from rl_lightning.rewards.dispatch import Call, Dispatch
from rl_lightning.rewards.messages import Preparation
from rl_lightning.rewards.spec import Outcome
from rl_lightning.typed import Typed


class WorkerPool(metaclass=Typed):
    """Persistent subprocesses for short calls, each killed and replaced when a call hangs or crashes it.

    Workers are fresh interpreters, neither forks (unsafe beside threads and CUDA) nor ``multiprocessing`` children
    (which import the main script again). OMP_NUM_THREADS is 1 in them unless set. They end with the parent, however it ends.
    ``map`` may be called from any thread, one caller at a time.

    Args:
        workers: number of processes.
        timeout_s: longest time for one call, in seconds. The time to start a worker isn't counted, nor that to import a
            function's module.
        memory_limit_gb: address space of a worker, in units of 2^30 bytes (RLIMIT_AS); None is no limit. A worker that
            ran into it is replaced.
        setup: calls (dotted path, arguments) that each worker makes once, before its first call and untimed.
        start_timeout_s: longest time in seconds for a worker to start with its setup, and for each import.
        in_flight: calls that a worker makes at a time; above 1 for coroutine functions alone.
    """

    def __init__(
        self,
        workers: int = 1,
        timeout_s: float = 10.0,
        memory_limit_gb: float | None = None,
        setup: Sequence[tuple[str, Mapping[str, object]]] = (),
        start_timeout_s: float = 300.0,
        in_flight: int = 1,
    ) -> None:
        if workers < 1:
            raise UserError(f"workers must be at least 1, not {workers}")
        for name, limit in (("timeout_s", timeout_s), ("start_timeout_s", start_timeout_s)):
            if not limit > 0:
                raise UserError(f"{name} must be above 0 seconds, not {limit}")
        if memory_limit_gb is not None and not memory_limit_gb > 0:
            raise UserError(f"memory_limit_gb must be above 0 or null, not {memory_limit_gb}")
        self.timeout_s = timeout_s
        self.in_flight = in_flight
        settings: Preparation = {
            "memory_limit": None if memory_limit_gb is None else int(memory_limit_gb * 2**30),
            "setup": [(function, dict(arguments)) for function, arguments in setup],
        }
        self.crew = Crew(workers, settings, start_timeout_s)
        self._lock = threading.Lock()
        self._closed = 0  # how many times `close` was called
        self._finalizer = weakref.finalize(self, kill_all, self.crew.running, os.getpid())

    def start(self, functions: Sequence[Function] = ()) -> None:
        """Start the workers and return at once; they import in the background. Does nothing for those that run.

        Args:
            functions: that will be called.

        Raises:
            UserError: if the system grants no process.
        """
        with self._lock:
            for function in functions:
                self.crew.key(function)
            self.crew.start()

    def close(self) -> None:
        """Kill the workers. A later ``start`` or ``map`` starts new ones."""
        # Before the lock: a `map` of another thread holds it, and ends when it sees that this number has changed.
        self._closed += 1
        with self._lock:
            kill_all(self.crew.running, os.getpid())

    def map(
        self,
        calls: Sequence[Call],
        given_up: Callable[[], bool] = lambda: False,
        sizes: Sequence[int] | None = None,
    ) -> list[Outcome]:
        """Make the calls, and return how each went, in the same order.

        Args:
            calls: pairs of a function (dotted path or callable) and its keyword arguments. A callable is pickled once, so
                changes to its state after the first call do not reach the workers.
            given_up: asked every 0.1 s; once it returns True the calls end.
            sizes: how many samples each call is for: it may take `timeout_s` for each of them. One each if None.

        Raises:
            UserError: if the workers cannot be started, or their setup fails.
            RuntimeError: if the pool is closed meanwhile, or the calls are given up.
        """
        closed = self._closed
        limits = [self.timeout_s * size for size in sizes or [1] * len(calls)]
        with self._lock:
            try:
                return Dispatch(
                    self.crew, calls, limits, self.in_flight, lambda: given_up() or self._closed != closed
                ).run()
            except BaseException:
                # Else the next `map` would take the answers to these calls for its own.
                kill_all(self.crew.running, os.getpid())
                raise

    def __reduce__(self) -> tuple[object, ...]:
        limit = self.crew.settings["memory_limit"]
        return WorkerPool, (
            self.crew.size,
            self.timeout_s,
            None if limit is None else limit / 2**30,
            self.crew.settings["setup"],
            self.crew.start_timeout_s,
            self.in_flight,
        )

"""Subprocesses that can be killed, for code that may hang, crash or eat memory."""

from __future__ import annotations

import contextlib
import os
import pickle
import selectors
import signal
import sys
import threading
import time
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rl_lightning.errors import UserError
from rl_lightning.rewards import clock, frames
from rl_lightning.rewards.process import Worker

Kind = Literal["ok", "raised", "timeout", "died"]
Function = str | Callable[..., Any]
Call = tuple[Function, Mapping[str, Any]]

_LARGEST_CHUNK = 64
#: How often a ``map`` asks whether it is wanted any more, in seconds.
_LOOK_EVERY_S = 0.1


@dataclass(frozen=True)
class Outcome:
    """How one call went.

    Args:
        kind: ``ok``; ``raised`` an exception, or returned neither a number nor a short text; ``timeout``: it was killed for taking too long; ``died``: the process
            ended during the call (a crash, ``os._exit``, killed for its memory).
        value: what the call returned, if it did.
        error: the traceback, or one line about the timeout or death.
        counts: events that the call counted through :mod:`rl_lightning.rewards.tally`.
    """

    kind: Kind
    value: Any = None
    error: str | None = None
    counts: dict[str, int] = field(default_factory=dict)


class WorkerPool:
    """Persistent subprocesses for short calls, each killed and replaced when a call hangs or crashes it.

    Workers are fresh interpreters, neither forks (unsafe beside threads and CUDA) nor ``multiprocessing`` children
    (which import the main script again). They run one call at a time, and OMP_NUM_THREADS is 1 in them unless set.
    They end with the parent, however it ends. ``map`` may be called from any thread, one caller at a time.

    Args:
        workers: number of processes.
        timeout_s: longest time for one call, in seconds. The time to start a worker isn't counted, nor that to import a
            function's module.
        memory_limit_gb: address space of a worker, in units of 2^30 bytes (RLIMIT_AS); None is no limit. A worker that
            ran into it is replaced.
        setup: calls (dotted path, arguments) that each worker makes once, before its first call and untimed.
        start_timeout_s: longest time in seconds for a worker to start with its setup, and for each import.
    """

    def __init__(
        self,
        workers: int = 1,
        timeout_s: float = 10.0,
        memory_limit_gb: float | None = None,
        setup: Sequence[tuple[str, Mapping[str, Any]]] = (),
        start_timeout_s: float = 300.0,
    ) -> None:
        if workers < 1:
            raise UserError(f"workers must be at least 1, not {workers}")
        for name, limit in (("timeout_s", timeout_s), ("start_timeout_s", start_timeout_s)):
            if not limit > 0:
                raise UserError(f"{name} must be above 0 seconds, not {limit}")
        if memory_limit_gb is not None and not memory_limit_gb > 0:
            raise UserError(f"memory_limit_gb must be above 0 or null, not {memory_limit_gb}")
        self.workers = workers
        self.timeout_s = timeout_s
        self.start_timeout_s = start_timeout_s
        self._settings: dict[str, Any] = {
            "memory_limit": None if memory_limit_gb is None else int(memory_limit_gb * 2**30),
            "setup": [(function, dict(arguments)) for function, arguments in setup],
        }
        self._running: list[Worker] = []
        # The functions themselves are kept so that no other object can take over an id.
        self._functions: list[tuple[Function, bytes]] = []
        self._keys: dict[str | int, int] = {}
        self._lock = threading.Lock()
        self._closed = 0  # times
        self._finalizer = weakref.finalize(self, _kill_all, self._running, os.getpid())

    def start(self, functions: Sequence[Function] = ()) -> None:
        """Start the workers and return at once; they import in the background. Does nothing for those that run.

        Args:
            functions: that will be called.

        Raises:
            UserError: if the system grants no process.
        """
        with self._lock:
            for function in functions:
                self._key(function)
            self._start()

    def _start(self) -> None:
        for worker in [worker for worker in self._running if worker.gone()]:
            self._running.remove(worker)
            worker.kill()
        while len(self._running) < self.workers:
            worker = Worker({**self._settings, "sys_path": list(sys.path)}, self.start_timeout_s)
            for key, (_, pickled) in enumerate(self._functions):
                worker.define(key, pickled)
            self._running.append(worker)

    def close(self) -> None:
        """Kill the workers. A later ``start`` or ``map`` starts new ones."""
        # A `map` of another thread holds the lock: it notices.
        self._closed += 1
        with self._lock:
            _kill_all(self._running, os.getpid())

    def map(self, calls: Sequence[Call], given_up: Callable[[], bool] = lambda: False) -> list[Outcome]:
        """Make the calls, and return how each went, in the same order.

        Args:
            calls: pairs of a function (dotted path or picklable callable) and its keyword arguments. A callable is
                pickled once, so changes to its state after the first call do not reach the workers.
            given_up: asked now and then whether nobody wants to know any more.

        Raises:
            UserError: if the workers cannot be started, or their setup fails.
            RuntimeError: if the pool is closed meanwhile, or the calls are given up.
        """
        closed = self._closed
        with self._lock:
            try:
                return _Dispatch(self, calls, lambda: given_up() or self._closed != closed).run()
            except BaseException:
                # Results of the interrupted calls would be taken for those of the next.
                _kill_all(self._running, os.getpid())
                raise

    def _key(self, function: Function) -> int:
        """Return the key of a function, pickling it the first time it is seen."""
        identity = function if isinstance(function, str) else id(function)
        if identity not in self._keys:
            pickled = pickle.dumps(function)
            self._keys[identity] = len(self._functions)
            self._functions.append((function, pickled))
        return self._keys[identity]

    def __reduce__(self) -> tuple[Any, ...]:
        limit = self._settings["memory_limit"]
        return WorkerPool, (
            self.workers,
            self.timeout_s,
            None if limit is None else limit / 2**30,
            self._settings["setup"],
            self.start_timeout_s,
        )


def _kill_all(running: list[Worker], owner: int) -> None:
    # A fork of the owner inherits this list, but the processes aren't its own.
    ended = running.copy()
    running.clear()
    if os.getpid() == owner:
        for worker in ended:
            worker.interrupt()
        for worker in ended:
            worker.kill()


class _Dispatch:
    """One ``map``: hands out the calls in chunks, and gathers their outcomes."""

    def __init__(self, pool: WorkerPool, calls: Sequence[Call], given_up: Callable[[], bool]) -> None:
        self.pool = pool
        self.given_up = given_up
        self.outcomes: list[Outcome | None] = [None] * len(calls)
        self.keys: list[int] = [0] * len(calls)
        self.arguments: list[bytes] = [b""] * len(calls)
        self.waiting: deque[int] = deque()
        for index, (function, arguments) in enumerate(calls):
            try:
                self.keys[index] = pool._key(function)
                self.arguments[index] = pickle.dumps(dict(arguments), protocol=pickle.HIGHEST_PROTOCOL)
                self.waiting.append(index)
            except Exception:
                self.outcomes[index] = Outcome("raised", error=traceback.format_exc())
        # Small enough that workers finish together, large enough that a message costs little per call.
        self.chunk = max(1, min(_LARGEST_CHUNK, len(self.waiting) // (4 * pool.workers)))

    def run(self) -> list[Outcome]:
        self.pool._start()
        with selectors.DefaultSelector() as selector:
            for worker in self.pool._running:
                selector.register(worker.responses, selectors.EVENT_READ, worker)
            while self.waiting or any(worker.owed for worker in self.pool._running):
                if self.given_up():
                    raise RuntimeError("The worker pool was closed, or the calls were given up")
                for worker in list(self.pool._running):
                    self._feed(worker)
                for worker in self._wait(selector):
                    self._collect(worker, selector)
                for worker in list(self.pool._running):
                    self._check_clock(worker, selector)
        assert all(outcome is not None for outcome in self.outcomes)
        return [outcome for outcome in self.outcomes if outcome is not None]

    def _wait(self, selector: selectors.BaseSelector) -> list[Worker]:
        """Wait for news; return the workers that have some."""
        busy = [worker for worker in self.pool._running if worker.owed or worker.starting]
        pause = max(0.0, min(worker.deadline for worker in busy) - time.monotonic()) if busy else 0.0
        pause = min(pause, _LOOK_EVERY_S)
        if any(worker.outgoing for worker in busy):
            pause = min(pause, 0.001)  # a large message is on its way: come back to it soon
        # This process may itself be a reward worker.
        unhurried = clock.stopped() if all(worker.starting for worker in busy) else contextlib.nullcontext()
        with unhurried:
            return [key.data for key, _ in selector.select(pause)]

    def _feed(self, worker: Worker) -> None:
        """Give an idle worker its next chunk, and before that the functions that are called in it."""
        if not worker.starting and not worker.owed and self.waiting:
            chunk = [self.waiting[place] for place in range(min(self.chunk, len(self.waiting)))]
            unknown = {self.keys[index] for index in chunk} - worker.defined
            for key in unknown:
                worker.define(key, self.pool._functions[key][1])
            if not unknown:
                worker.outgoing += frames.pack(("run", [(i, self.keys[i], self.arguments[i]) for i in chunk]))
                worker.owed.extend(chunk)
                for _ in chunk:
                    self.waiting.popleft()
            worker.wind(self.pool.timeout_s)
        worker.flush()

    def _collect(self, worker: Worker, selector: selectors.BaseSelector) -> None:
        messages, alive = worker.receive()
        for message in messages:
            if message[0] == "ready":
                if message[1] is not None:
                    raise UserError(f"A reward worker's setup failed: {message[1].strip().splitlines()[-1]}")
                worker.ready = True
                continue
            if message[0] == "defined":
                worker.loading.remove(message[1])
                continue
            if message[0] == "clock":
                worker.clock_stopped = not message[1]
                continue
            index, kind, value, error, counts = message
            worker.owed.popleft()
            worker.proven.add(self.keys[index])
            self.outcomes[index] = _outcome(kind, value, error, counts)
            if kind == "memory":
                # What a call leaves behind must not count against the next one.
                self._exchange(worker, selector)
                return
        if messages:
            worker.wind(self.pool.timeout_s)
        if not alive:
            self._replace(worker, selector, "died")

    def _check_clock(self, worker: Worker, selector: selectors.BaseSelector) -> None:
        if (worker.owed or worker.starting) and time.monotonic() > worker.deadline and worker in self.pool._running:
            # A result may have come in while this process was busy elsewhere.
            self._collect(worker, selector)
            if worker in self.pool._running and time.monotonic() > worker.deadline:
                self._replace(worker, selector, "timeout")

    def _replace(self, worker: Worker, selector: selectors.BaseSelector, kind: Kind) -> None:
        """Kill a worker, charge the one call that it was at, and start another for the rest."""
        status = self._end(worker, selector)
        if worker.starting:
            limit = self.pool.start_timeout_s
            what = f"was not done after start_timeout_s = {limit:g} s" if kind == "timeout" else _death(status)
            raise UserError(f"A reward worker {what} while {self._start_of(worker)}")
        if worker.owed:
            self.outcomes[worker.owed[0]] = Outcome(kind, error=f"The call {self._fate(worker, kind, status)}")
            worker.owed.popleft()
        self._succeed(worker, selector)

    def _start_of(self, worker: Worker) -> str:
        """Return what a worker that starts is at, and what to do about it."""
        if worker.ready:
            function = self.pool._functions[worker.loading[0]][0]
            module = function.rpartition(".")[0] if isinstance(function, str) else type(function).__module__
            return f"importing {module}; do slow work of its import where it is needed, or in the reward's `prepare`"
        setup = ", ".join(function for function, _ in self.pool._settings["setup"])
        return f"starting{f' and preparing ({setup})' if setup else ''}; what it printed on stderr may say why"

    def _fate(self, worker: Worker, kind: Kind, status: int) -> str:
        if kind != "timeout":
            return _death(status)
        first = "" if self.keys[worker.owed[0]] in worker.proven else (
            ", the first of this function in its process: what it loads once belongs to the import of its module or to its "
            "`prepare`, where no clock runs"
        )  # fmt: skip
        return f"took longer than {self.pool.timeout_s:g} s{first}"

    def _exchange(self, worker: Worker, selector: selectors.BaseSelector) -> None:
        """Kill a worker between two calls, and start another for the rest."""
        self._end(worker, selector)
        self._succeed(worker, selector)

    def _end(self, worker: Worker, selector: selectors.BaseSelector) -> int:
        selector.unregister(worker.responses)
        self.pool._running.remove(worker)
        return worker.kill()

    def _succeed(self, worker: Worker, selector: selectors.BaseSelector) -> None:
        """Start a worker in the place of one that has ended, and let it do what that one still owed."""
        self.waiting.extendleft(reversed(worker.owed))
        self.pool._start()
        for started in self.pool._running:
            if started.responses not in selector.get_map():
                selector.register(started.responses, selectors.EVENT_READ, started)


def _outcome(kind: str, value: bytes, error: str | None, counts: dict[str, int]) -> Outcome:
    if kind == "ok":
        return Outcome("ok", pickle.loads(value), error, counts)
    return Outcome("raised", None, error, counts)


def _death(status: int) -> str:
    if status < 0:
        name = next((known.name for known in signal.Signals if known == -status), str(-status))
        return f"ended its process by signal {name}"
    return f"ended its process with status {status}"

"""Worker processes that can be killed, for reward functions that may hang, crash or eat memory.

pool.py       WorkerPool: hands calls to workers, gathers outcomes, replaces workers that hang or die
process.py    Worker: one process as its parent sees it
messages.py   what the two say to each other
worker.py     the process itself, and its keeper
"""

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
from typing import Any

from rl_lightning.errors import UserError
from rl_lightning.rewards import messages
from rl_lightning.rewards.process import Worker
from rl_lightning.rewards.spec import Kind, Outcome

Function = str | Callable[..., Any]
Call = tuple[Function, Mapping[str, Any]]

_LARGEST_CHUNK = 64
#: Seconds between two questions of a ``map`` whether its calls have been given up.
_LOOK_EVERY_S = 0.1


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
        # Each function and its pickle, by key. The function itself is kept so that no other object can take over its id.
        self._functions: list[tuple[Function, bytes]] = []
        self._keys: dict[str | int, int] = {}
        self._lock = threading.Lock()
        self._closed = 0  # how many times `close` was called
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
        """Replace workers that have ended between two calls of ``map``, and start those that are missing."""
        for worker in [worker for worker in self._running if worker.gone()]:
            self._running.remove(worker)
            worker.kill()
        self._fill_up()

    def _fill_up(self) -> None:
        """Start the workers that are missing."""
        while len(self._running) < self.workers:
            worker = Worker({**self._settings, "sys_path": list(sys.path)}, self.start_timeout_s)
            for key, (_, pickled) in enumerate(self._functions):
                worker.define(key, pickled)
            self._running.append(worker)

    def close(self) -> None:
        """Kill the workers. A later ``start`` or ``map`` starts new ones."""
        # Before the lock: a `map` of another thread holds it, and ends when it sees that this number has changed.
        self._closed += 1
        with self._lock:
            _kill_all(self._running, os.getpid())

    def map(self, calls: Sequence[Call], given_up: Callable[[], bool] = lambda: False) -> list[Outcome]:
        """Make the calls, and return how each went, in the same order.

        Args:
            calls: pairs of a function (dotted path or picklable callable) and its keyword arguments. A callable is
                pickled once, so changes to its state after the first call do not reach the workers.
            given_up: asked every 0.1 s; once it returns True the calls end.

        Raises:
            UserError: if the workers cannot be started, or their setup fails.
            RuntimeError: if the pool is closed meanwhile, or the calls are given up.
        """
        closed = self._closed
        with self._lock:
            try:
                return _Dispatch(self, calls, lambda: given_up() or self._closed != closed).run()
            except BaseException:
                # Else the next `map` would take the answers to these calls for its own.
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
    # A fork of the owner inherits this list, but the processes are not its children.
    ended = running.copy()
    running.clear()
    if os.getpid() == owner:
        for worker in ended:  # all at once, for each may take a while to end
            worker.interrupt()
        for worker in ended:
            worker.kill()


class _Dispatch:
    """One ``map``: hands out the calls in chunks, and gathers their outcomes.

    A call is named by its place among `calls`. It is in `waiting`, then in some worker's `owed`, then in `outcomes`. If the
    worker dies, the call that it was at gets an outcome, and the others that it owed go back to the front of `waiting`.

    Args:
        pool: whose workers run the calls.
        calls: see `WorkerPool.map`.
        given_up: see `WorkerPool.map`.
    """

    def __init__(self, pool: WorkerPool, calls: Sequence[Call], given_up: Callable[[], bool]) -> None:
        self.pool = pool
        self.given_up = given_up
        self.selector = selectors.DefaultSelector()
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
        """Return the outcome of every call."""
        with self.selector:
            self.pool._start()
            self._listen()
            while self.waiting or any(worker.owed for worker in self.pool._running):
                if self.given_up():
                    raise RuntimeError("The worker pool was closed, or the calls were given up")
                for worker in list(self.pool._running):
                    self._feed(worker)
                for worker in self._wait():
                    self._collect(worker)
                for worker in list(self.pool._running):
                    self._check_clock(worker)
        assert all(outcome is not None for outcome in self.outcomes)
        return [outcome for outcome in self.outcomes if outcome is not None]

    def _wait(self) -> list[Worker]:
        """Return the workers that have sent something, once one has or it is time to look at the clocks."""
        busy = [worker for worker in self.pool._running if worker.owed or worker.starting]
        pause = max(0.0, min(worker.deadline for worker in busy) - time.monotonic()) if busy else 0.0
        pause = min(pause, _LOOK_EVERY_S)
        if any(worker.outgoing for worker in busy):
            pause = min(pause, 0.001)  # a large message is on its way: come back to it soon
        # This process may itself be a reward worker, with a call whose time does not run while others start.
        unhurried = messages.clock_stopped() if all(worker.starting for worker in busy) else contextlib.nullcontext()
        with unhurried:
            return [key.data for key, _ in self.selector.select(pause)]

    def _feed(self, worker: Worker) -> None:
        """Give an idle worker its next chunk, and before that the functions that are called in it."""
        if not worker.starting and not worker.owed and self.waiting:
            chunk = [self.waiting[place] for place in range(min(self.chunk, len(self.waiting)))]
            unknown = {self.keys[index] for index in chunk} - worker.defined
            for key in unknown:
                worker.define(key, self.pool._functions[key][1])
            if not unknown:
                worker.outgoing += messages.pack(("run", [(i, self.keys[i], self.arguments[i]) for i in chunk]))
                worker.owed.extend(chunk)
                for _ in chunk:
                    self.waiting.popleft()
            worker.restart_clock(self.pool.timeout_s)
        worker.flush()

    def _collect(self, worker: Worker) -> None:
        """Take in what a worker has sent, and replace it if it has ended."""
        received, alive = worker.receive()
        for message in received:
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
                # What this call leaves behind must not count against the next one.
                self._end(worker)
                self._start_successor(worker)
                return
        if received:
            worker.restart_clock(self.pool.timeout_s)
        if not alive:
            self._replace(worker, "died")

    def _check_clock(self, worker: Worker) -> None:
        """Replace a worker that is past its deadline."""
        if (worker.owed or worker.starting) and time.monotonic() > worker.deadline and worker in self.pool._running:
            # A result may have come in while this process was busy elsewhere.
            self._collect(worker)
            if worker in self.pool._running and time.monotonic() > worker.deadline:
                self._replace(worker, "timeout")

    def _replace(self, worker: Worker, kind: Kind) -> None:
        """Kill a worker, note how the call that it was at ended, and start another worker for the rest.

        Raises:
            UserError: if it was starting, which the next one would not do better.
        """
        status = self._end(worker)
        if worker.starting:
            limit = self.pool.start_timeout_s
            what = f"was not done after start_timeout_s = {limit:g} s" if kind == "timeout" else _death(status)
            raise UserError(f"A reward worker {what} while {self._start_of(worker)}")
        if worker.owed:
            self.outcomes[worker.owed[0]] = Outcome(kind, error=f"The call {self._fate(worker, kind, status)}")
            worker.owed.popleft()
        self._start_successor(worker)

    def _start_of(self, worker: Worker) -> str:
        """Say what a worker that is starting was doing, and what to do about it."""
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

    def _end(self, worker: Worker) -> int:
        """Kill a worker; return its exit status."""
        self.selector.unregister(worker.responses)
        self.pool._running.remove(worker)
        return worker.kill()

    def _start_successor(self, worker: Worker) -> None:
        """Put back what a worker that has ended still owed, and start another in its place."""
        self.waiting.extendleft(reversed(worker.owed))
        # Others may have ended at the same moment. They still owe calls, so `_collect` must see that, each in its turn.
        self.pool._fill_up()
        self._listen()

    def _listen(self) -> None:
        """Hear of messages from workers that are new."""
        for worker in self.pool._running:
            if worker.responses not in self.selector.get_map():
                self.selector.register(worker.responses, selectors.EVENT_READ, worker)


def _outcome(kind: str, value: bytes, error: str | None, counts: dict[str, int]) -> Outcome:
    if kind == "ok":
        return Outcome("ok", pickle.loads(value), error, counts)
    return Outcome("raised", None, error, counts)


def _death(status: int) -> str:
    if status < 0:
        name = next((known.name for known in signal.Signals if known == -status), str(-status))
        return f"ended its process by signal {name}"
    return f"ended its process with status {status}"

"""Hands calls to the workers of a pool, gathers their outcomes, replaces workers that hang or die."""

from __future__ import annotations

import contextlib
import itertools
import pickle
import selectors
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from rl_lightning.errors import UserError
from rl_lightning.rewards import messages
from rl_lightning.rewards.crew import Crew, Function
from rl_lightning.rewards.pickled import called, dumps
from rl_lightning.rewards.process import Worker
from rl_lightning.rewards.spec import Kind, Outcome
from rl_lightning.rewards.tally import Said

Call = tuple[Function, Mapping[str, object]]

_LARGEST_CHUNK = 64
#: Seconds between two questions whether the calls have been given up.
_LOOK_EVERY_S = 0.1
#: Seconds beyond the time limit of its calls after which an event loop that says nothing is taken to be blocked.
_BLOCKED_S = 1.0


class Dispatch:
    """One ``map``: hands out the calls in chunks, and gathers their outcomes.

    A call is named by its place among `calls`. It is in `waiting`, then in some worker's `owed`, then in `outcomes`. If the
    worker dies, the call that it was at gets an outcome, and the others that it owed go back to the front of `waiting`. Where a
    worker was at several calls, nobody knows which of them was to blame: each of these is made again, alone.

    Args:
        crew: the workers.
        calls: see `WorkerPool.map`.
        limits: longest time for each call, in seconds.
        in_flight: calls that a worker makes at a time.
        given_up: see `WorkerPool.map`.
    """

    def __init__(
        self,
        crew: Crew,
        calls: Sequence[Call],
        limits: Sequence[float],
        in_flight: int,
        given_up: Callable[[], bool],
    ) -> None:
        self.crew = crew
        self.limits = limits
        self.in_flight = in_flight
        self.given_up = given_up
        self.selector = selectors.DefaultSelector()
        self.outcomes: list[Outcome | None] = [None] * len(calls)
        self.keys: list[int] = [0] * len(calls)
        self.arguments: list[bytes] = [b""] * len(calls)
        self.waiting: deque[int] = deque()
        self.suspects: set[int] = set()
        for index, (function, arguments) in enumerate(calls):
            try:
                self.keys[index] = crew.key(function)
                self.arguments[index] = dumps(dict(arguments))
                self.waiting.append(index)
            except Exception:
                self.outcomes[index] = Outcome("raised", error=traceback.format_exc())
        # Small enough that workers finish together, large enough that a message costs little per call.
        self.chunk = max(1, min(_LARGEST_CHUNK, len(self.waiting) // (4 * crew.size)))
        if in_flight > 1:  # an event loop has its next calls at hand
            self.chunk = -(-len(self.waiting) // crew.size)

    def run(self) -> list[Outcome]:
        """Return the outcome of every call."""
        with self.selector:
            self.crew.start()
            self._listen()
            while self.waiting or any(worker.owed for worker in self.crew.running):
                if self.given_up():
                    raise RuntimeError("The worker pool was closed, or the calls were given up")
                for worker in list(self.crew.running):
                    self._feed(worker)
                for worker in self._wait():
                    self._collect(worker)
                for worker in list(self.crew.running):
                    self._check_clock(worker)
        assert all(outcome is not None for outcome in self.outcomes)
        return [outcome for outcome in self.outcomes if outcome is not None]

    def _wait(self) -> list[Worker]:
        """Return the workers that have sent something, once one has or it is time to look at the clocks."""
        busy = [worker for worker in self.crew.running if worker.owed or worker.starting]
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
            chunk = self._next_chunk()
            unknown = {self.keys[index] for index in chunk} - worker.defined
            for key in unknown:
                worker.define(key, self.crew.functions[key][1])
            if not unknown:
                worker.outgoing += messages.pack(self._message(chunk))
                worker.owed.extend(chunk)
                for _ in chunk:
                    self.waiting.popleft()
            worker.restart_clock(self._patience(worker))
        worker.flush()

    def _next_chunk(self) -> list[int]:
        """Return the calls that a worker gets next; they stay in `waiting`."""
        if self.waiting[0] in self.suspects:
            return [self.waiting[0]]
        first = itertools.islice(self.waiting, self.chunk)
        return list(itertools.takewhile(lambda index: index not in self.suspects, first))

    def _message(self, chunk: Sequence[int]) -> messages.Asked:
        if self.in_flight == 1:
            return "run", [(index, self.keys[index], self.arguments[index]) for index in chunk]
        timed = [(index, self.keys[index], self.arguments[index], self.limits[index]) for index in chunk]
        return "together", timed, self.in_flight

    def _patience(self, worker: Worker) -> float:
        """Return after how many seconds of silence a worker is taken to hang."""
        at_work = [self.limits[index] for index in list(worker.owed)[: self.in_flight]]
        if self.in_flight == 1 or not at_work:
            return max(at_work, default=0.0)
        return max(at_work) + _BLOCKED_S

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
            index, kind, value, error, said = message
            worker.owed.remove(index)
            worker.proven.add(self.keys[index])
            self.outcomes[index] = _outcome(kind, value, error, said)
            if kind == "memory":
                # What this call leaves behind must not count against the next one.
                self._end(worker)
                self._start_successor(worker)
                return
        if received:
            worker.restart_clock(self._patience(worker))
        if not alive:
            self._replace(worker, "died")

    def _check_clock(self, worker: Worker) -> None:
        """Replace a worker that is past its deadline."""
        if (worker.owed or worker.starting) and time.monotonic() > worker.deadline and worker in self.crew.running:
            # A result may have come in while this process was busy elsewhere.
            self._collect(worker)
            if worker in self.crew.running and time.monotonic() > worker.deadline:
                self._replace(worker, "timeout")

    def _replace(self, worker: Worker, kind: Kind) -> None:
        """Kill a worker, note how the call that it was at ended, and start another worker for the rest.

        Raises:
            UserError: if it was starting, which the next one would not do better.
        """
        status = self._end(worker)
        if worker.starting:
            limit = self.crew.start_timeout_s
            what = f"was not done after start_timeout_s = {limit:g} s" if kind == "timeout" else _death(status)
            raise UserError(f"A reward worker {what} while {_start_of(worker, self.crew)}")
        at_work = list(worker.owed)[: self.in_flight]
        if len(at_work) == 1:
            index = worker.owed.popleft()
            first = self.keys[index] not in worker.proven
            how = _too_long(self.limits[index], first) if kind == "timeout" else _death(status)
            self.outcomes[index] = Outcome(kind, error=f"The call {how}")
        else:
            self.suspects.update(at_work)
        self._start_successor(worker)

    def _end(self, worker: Worker) -> int:
        """Kill a worker; return its exit status."""
        self.selector.unregister(worker.responses)
        self.crew.running.remove(worker)
        return worker.kill()

    def _start_successor(self, worker: Worker) -> None:
        """Put back what a worker that has ended still owed, and start another in its place."""
        self.waiting.extendleft(reversed(worker.owed))
        # Others may have ended at the same moment. They still owe calls, so `_collect` must see that, each in its turn.
        self.crew.fill_up()
        self._listen()

    def _listen(self) -> None:
        """Hear of messages from workers that are new."""
        for worker in self.crew.running:
            if worker.responses not in self.selector.get_map():
                self.selector.register(worker.responses, selectors.EVENT_READ, worker)


def _outcome(kind: str, value: bytes, error: str | None, said: Said) -> Outcome:
    if kind == "ok":
        return Outcome("ok", pickle.loads(value), error, said)
    return Outcome("timeout" if kind == "timeout" else "raised", None, error, said)


def _start_of(worker: Worker, crew: Crew) -> str:
    """Say what a worker that is starting was doing, and what to do about it."""
    if worker.ready:
        function = crew.functions[worker.loading[0]][0]
        module = function.rpartition(".")[0] if isinstance(function, str) else called(function).__module__
        return f"importing {module}; do slow work of its import where it is needed, or in the reward's `prepare`"
    setup = ", ".join(function for function, _ in crew.settings["setup"])
    return f"starting{f' and preparing ({setup})' if setup else ''}; what it printed on stderr may say why"


def _too_long(limit_s: float, first: bool) -> str:
    hint = (
        ", the first of this function in its process: what it loads once belongs to the import of its module or to its "
        "`prepare`, where no clock runs"
    )
    return f"took longer than {limit_s:g} s{hint if first else ''}"


def _death(status: int) -> str:
    if status < 0:
        name = next((known.name for known in signal.Signals if known == -status), str(-status))
        return f"ended its process by signal {name}"
    return f"ended its process with status {status}"

"""Episodes played in worker processes that can be killed, while the policy goes on with others."""

from __future__ import annotations

import functools
import itertools
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass, field

from rl_lightning.environments import episode
from rl_lightning.environments.spec import BoundEnvironment, EnvironmentSpec, bound
from rl_lightning.errors import UserError
from rl_lightning.rewards.pool import WorkerPool
from rl_lightning.rewards.spec import Kind, Outcome, RewardLimits
from rl_lightning.rewards.tally import Said as Told

#: Seconds between two looks at whether a reply is there.
_LOOK_EVERY_S = 0.1

_requests = itertools.count()


@dataclass(frozen=True)
class Reply:
    """What an environment says to a turn.

    Args:
        heard: what the policy hears, a text or messages; None if the episode has ended.
        reward: of the turn, if there is one.
        failure: how the environment failed (``raised``, ``timeout``, ``died``); None if it did not.
        error: the traceback, or a line about it.
        told: what it told `rl_lightning.rewards.tally`.
    """

    heard: str | list[episode.Message] | None = None
    reward: float | None = None
    failure: Kind | None = None
    error: str | None = None
    told: Told = field(default_factory=Told)

    @classmethod
    def of(cls, outcome: Outcome) -> Reply:
        """Return what a call of `episode.advance` has come to."""
        if outcome.kind != "ok":
            return cls(failure=outcome.kind, error=outcome.error, told=outcome.said)
        return cls(**json.loads(str(outcome.value)), told=outcome.said)


#: A function that a worker has, and its arguments.
_Call = tuple[Callable[..., object], Mapping[str, object]]


class _Lane:
    """One worker, and the calls that wait for it. What has come while it was busy is sent together.

    Args:
        pool: of one worker.
    """

    def __init__(self, pool: WorkerPool) -> None:
        self.pool = pool
        self._lock = threading.Lock()
        self._waiting: list[tuple[_Call, Future[Outcome]]] = []
        self._at_work = False

    def ask(self, call: _Call, given_up: threading.Event) -> Future[Outcome]:
        """Make a call soon. Never waits.

        Args:
            call: to be made.
            given_up: once it is set, calls end.
        """
        future: Future[Outcome] = Future()
        with self._lock:
            self._waiting.append((call, future))
            if not self._at_work:
                self._at_work = True
                # A daemon, so that an environment that hangs does not keep the process alive.
                threading.Thread(target=self._work, args=(given_up,), name="environment", daemon=True).start()
        return future

    def _work(self, given_up: threading.Event) -> None:
        while True:
            with self._lock:
                sent, self._waiting = self._waiting, []
                if not sent:
                    self._at_work = False
                    return
            try:
                outcomes = self.pool.map([call for call, _ in sent], given_up.is_set)
            except BaseException as error:
                for _, future in sent:
                    future.set_exception(error)
            else:
                for outcome, (_, future) in zip(outcomes, sent, strict=True):
                    future.set_result(outcome)


class Episodes:
    """Plays the episodes of a run.

    An episode stays with one worker, where its state is. A worker that hangs or dies is replaced; the episode that it was at has
    failed, and its successor plays the others again.

    Args:
        spec: the environment.
        limits: of the workers; `timeout_s` is for one turn.

    Raises:
        UserError: for a function that is no environment.
    """

    def __init__(self, spec: EnvironmentSpec, limits: RewardLimits | None = None) -> None:
        self.limits = limits or RewardLimits()
        self.environment: BoundEnvironment = bound(spec)
        self._make_workers()

    def _make_workers(self) -> None:
        limits, function = self.limits, self.environment.function
        self._advance = functools.partial(episode.advance, function)
        self._first_words = functools.partial(episode.first_words, function)
        self._tried = functools.partial(episode.tried, function)
        pools = [
            WorkerPool(1, limits.timeout_s, limits.memory_limit_gb, start_timeout_s=limits.start_timeout_s)
            for _ in range(limits.workers or 1)
        ]
        self.lanes = [_Lane(pool) for pool in pools]

    def __getstate__(self) -> dict[str, object]:
        return {"limits": self.limits, "environment": self.environment}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._make_workers()

    def start(self) -> None:
        """Start the workers in the background; they import what the environment needs."""
        for lane in self.lanes:
            lane.pool.start([self._advance])

    def close(self) -> None:
        """End the workers; another call starts new ones."""
        for lane in self.lanes:
            lane.pool.close()

    def try_out(self, given: Mapping[str, object], turns: int) -> str | None:
        """Play one episode in which the policy says nothing.

        Args:
            given: see `BoundEnvironment.keywords`.
            turns: of the policy, at most.

        Returns:
            What went wrong in a way that may depend on what the policy says, such as a traceback; None if nothing did.

        Raises:
            UserError: if the environment does what none may do, such as to yield a number.
        """
        keywords = {"arguments": self.environment.keywords(given), "turns": turns}
        (outcome,) = self.lanes[0].pool.map([(self._tried, keywords)], sizes=[turns])
        if outcome.kind == "ok" and outcome.value is not None:
            raise UserError(f"Environment {self.environment.spec.name}: {outcome.value}")
        return outcome.error

    def first_words(self, given: Sequence[Mapping[str, object]]) -> list[Reply]:
        """Return what episodes say first, each as `Reply.heard`, or how they failed."""
        calls = [(self._first_words, {"arguments": self.environment.keywords(one)}) for one in given]
        shares = [range(first, len(calls), len(self.lanes)) for first in range(len(self.lanes))]
        replies: dict[int, Reply] = {}
        for lane, share in zip(self.lanes, shares, strict=True):
            outcomes = lane.pool.map([calls[place] for place in share])
            replies |= {place: _first(outcome) for place, outcome in zip(share, outcomes, strict=True)}
        return [replies[place] for place in range(len(calls))]

    def begin(self, given: Sequence[Mapping[str, object]]) -> Played:
        """Return the episodes of one request.

        Args:
            given: one an episode: see `BoundEnvironment.keywords`.
        """
        return Played(self, [self.environment.keywords(one) for one in given])

    def ask(self, number: int, call: str, given_up: threading.Event, **arguments: object) -> Future[Outcome]:
        """Make a call in the process that plays an episode; see `_Lane.ask`."""
        function = self._advance if call == "advance" else episode.end
        return self.lanes[number % len(self.lanes)].ask((function, arguments), given_up)


def _first(outcome: Outcome) -> Reply:
    if outcome.kind != "ok":
        return Reply.of(outcome)
    return Reply(heard=json.loads(str(outcome.value)))


class Played:
    """The episodes of one request. An exception inside ``with`` gives them up.

    Args:
        episodes: plays them.
        arguments: of the environment, one an episode.
    """

    def __init__(self, episodes: Episodes, arguments: Sequence[Mapping[str, object]]) -> None:
        self._episodes = episodes
        self._arguments = arguments
        self._request = next(_requests)
        self._given_up = threading.Event()
        self._asked: dict[int, Future[Outcome]] = {}
        #: (Text, whether it was cut, calls) of each turn so far, by episode.
        self.turns: list[list[episode.Turn]] = [[] for _ in arguments]

    def __enter__(self) -> Played:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not None:
            self._given_up.set()

    def say(self, number: int, text: str, cut: bool, calls: Sequence[episode.Call], last: bool) -> None:
        """Let an episode hear a turn of the policy. Never waits.

        Args:
            number: of the episode.
            text, cut, calls: see `Said`.
            last: the policy will say no more.
        """
        self.turns[number].append((text, cut, calls))
        self._asked[number] = self._episodes.ask(
            number,
            "advance",
            self._given_up,
            key=(self._request, number),
            arguments=self._arguments[number],
            turns=list(self.turns[number]),
            last=last,
        )

    def end(self, number: int) -> None:
        """Close an episode that the policy cannot go on with, so that its ``finally`` runs. Never waits."""
        self._asked[number] = self._episodes.ask(
            number, "end", self._given_up, key=(self._request, number), turns=len(self.turns[number])
        )

    def reply(self, number: int, watch: Callable[[], None] | None = None) -> Reply:
        """Wait for the reply to what was said last.

        Args:
            number: of the episode.
            watch: called every 0.1 s while waiting; what it raises ends the wait.

        Raises:
            UserError: if no worker can be started.
        """
        return Reply.of(self._outcome(number, watch))

    def closed(self, number: int, watch: Callable[[], None] | None = None) -> Reply:
        """Wait until an episode is closed; return a reply that says whether that failed."""
        outcome = self._outcome(number, watch)
        return Reply() if outcome.kind == "ok" else Reply.of(outcome)

    def _outcome(self, number: int, watch: Callable[[], None] | None) -> Outcome:
        future = self._asked[number]
        while True:
            try:
                return future.result(_LOOK_EVERY_S)
            except NotYet:
                if watch is not None:
                    watch()

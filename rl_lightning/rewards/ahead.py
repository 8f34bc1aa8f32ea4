"""Scoring responses while others are still being sampled."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, wait

from rl_lightning.rewards.spec import RewardSample
from rl_lightning.rewards.workers import Outcome

#: How long to wait, in seconds, for a call to notice that its workers are gone before they are ended again: it may have been
#: about to start others.
_NOTICE_S = 0.1

#: Reward name → the outcomes of some samples, in their order.
Outcomes = dict[str, list[Outcome]]


class Ahead:
    """Samples whose outcomes are on their way. An exception inside ``with`` gives them up.

    Args:
        call: every function that runs in workers, on some samples.
        interrupt: ends such a call, which then raises.
        executor: of one thread.
    """

    def __init__(
        self, call: Callable[[Sequence[RewardSample]], Outcomes], interrupt: Callable[[], None], executor: Executor
    ) -> None:
        self._call = call
        self._interrupt = interrupt
        self._executor = executor
        self._given_up = False
        self._lock = threading.Lock()
        self._waiting: dict[int, RewardSample] = {}
        self._sent: list[tuple[dict[int, RewardSample], Future[Outcomes]]] = []

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not None:
            self.give_up()

    def give_up(self) -> None:
        """Score nothing more, and end what is being scored: the end of the process would wait for it."""
        with self._lock:
            self._given_up = True
            sent = list(self._sent)
        for _, future in sent:
            while not (future.cancel() or future.done()):
                self._interrupt()
                wait([future], _NOTICE_S)

    def add(self, number: int, sample: RewardSample) -> None:
        """Score a sample soon, with whatever else has come meanwhile; never waits.

        Args:
            number: where it will be among all samples.
            sample: what it will be.
        """
        with self._lock:
            self._waiting[number] = sample
        self._send_if_idle()

    def _send_if_idle(self, done: object = None) -> None:
        with self._lock:
            if not self._waiting or self._given_up or (self._sent and not _went_well(self._sent[-1][1])):
                return
            future = self._send()
        future.add_done_callback(self._send_if_idle)

    def _send(self) -> Future[Outcomes]:
        future = self._executor.submit(self._call, list(self._waiting.values()))
        self._sent.append((self._waiting, future))
        self._waiting = {}
        return future

    def outcomes(self, samples: Sequence[RewardSample]) -> Outcomes:
        """Return the outcomes of all samples, in their order; of what was not added, or differs from it, too.

        Raises:
            UserError: if the workers cannot be started.
        """
        with self._lock:
            added = {number: sample for part, _ in self._sent for number, sample in part.items()}
            self._waiting = {number: sample for number, sample in enumerate(samples) if added.get(number) != sample}
            if self._waiting or not self._sent:
                self._send()
            sent = list(self._sent)
        found: dict[str, dict[int, Outcome]] = {}
        with self:
            for part, future in sent:
                for name, outcomes in future.result().items():
                    found.setdefault(name, {}).update(zip(part, outcomes, strict=True))
        return {name: [known[number] for number in range(len(samples))] for name, known in found.items()}


def _went_well(future: Future[Outcomes]) -> bool:
    """Tell whether a call is over and has raised nothing: what one raises, such as that no worker starts, the next would too."""
    return future.done() and not future.cancelled() and future.exception() is None

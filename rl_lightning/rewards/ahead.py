"""Scoring responses while others are still being sampled."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from rl_lightning.errors import UserError
from rl_lightning.rewards.spec import Outcome, RewardSample

#: How often whoever waits for rewards looks up, in seconds.
_LOOK_EVERY_S = 0.1

#: Reward name → the outcomes of some samples, in their order.
Outcomes = dict[str, list[Outcome]]

#: Scores some samples; raises soon after what it is given returns True.
Call = Callable[[Sequence[RewardSample], Callable[[], bool]], Outcomes]


class Ahead:
    """Samples whose outcomes are on their way. An exception inside ``with`` gives them up.

    They are scored by a thread that the end of the process does not wait for, so a reward that hangs holds nobody.

    Args:
        call: every function that runs in workers, on some samples.
    """

    def __init__(self, call: Call) -> None:
        self._call = call
        self._given_up = threading.Event()
        self._news = threading.Condition()
        self._waiting: dict[int, RewardSample] = {}
        self._sent: dict[int, RewardSample] = {}
        self._found: dict[str, dict[int, Outcome]] = {}
        self._error: BaseException | None = None
        self._at_work = False

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:
        if kind is not None:
            self.give_up()

    def give_up(self) -> None:
        """Score nothing more, and have what is being scored end; never waits."""
        self._given_up.set()

    def add(self, number: int, sample: RewardSample) -> None:
        """Score a sample soon, with whatever else has come meanwhile; never waits.

        Args:
            number: where it will be among all samples.
            sample: what it will be.
        """
        with self._news:
            self._waiting[number] = sample
            self._work()

    def outcomes(self, samples: Sequence[RewardSample], watch: Callable[[], None] | None = None) -> Outcomes:
        """Return the outcomes of all samples, in their order; of what was not added, or differs from it, too.

        Args:
            samples: all of them.
            watch: called now and then; what it raises gives the samples up.

        Raises:
            UserError: if the workers cannot be started.
        """
        with self:
            if not samples:
                return self._call([], self._given_up.is_set)
            with self._news:
                self._waiting = {
                    number: sample for number, sample in enumerate(samples) if self._sent.get(number) != sample
                }
                self._work()
                while self._at_work:
                    self._news.wait(_LOOK_EVERY_S)
                    if watch is not None:
                        watch()
            if self._error is not None:
                raise self._error
        return {name: [known[number] for number in range(len(samples))] for name, known in self._found.items()}

    def _work(self) -> None:
        """See to it that somebody scores what waits; holds the lock."""
        # What a call raises, such as that no worker starts, the next would too.
        if self._at_work or not self._waiting or self._error is not None or self._given_up.is_set():
            return
        self._at_work = True
        try:
            threading.Thread(target=self._score, name="rewards", daemon=True).start()
        except RuntimeError as error:
            self._at_work = False
            raise UserError(
                f"rewards cannot be computed ({error}): raise what the system allows (ulimit -u)"
            ) from error

    def _score(self) -> None:
        """Score batch after batch, each of what has come during the one before."""
        while (batch := self._next_batch()) is not None:
            try:
                found = self._call(list(batch.values()), self._given_up.is_set)
            except BaseException as error:
                with self._news:
                    self._error, self._at_work = error, False
                    self._news.notify_all()
                return
            with self._news:
                for name, outcomes in found.items():
                    self._found.setdefault(name, {}).update(zip(batch, outcomes, strict=True))

    def _next_batch(self) -> dict[int, RewardSample] | None:
        with self._news:
            batch, self._waiting = self._waiting, {}
            if not batch or self._given_up.is_set():
                self._at_work = False
                self._news.notify_all()
                return None
            self._sent |= batch
            return batch

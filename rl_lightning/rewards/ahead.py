"""Computing rewards of responses while others are still being sampled."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from rl_lightning.errors import UserError
from rl_lightning.rewards.spec import Outcome, RewardSample

#: Seconds between two calls of `watch` while rewards are waited for.
_LOOK_EVERY_S = 0.1

#: Name of a reward function → its outcomes for some samples, in their order.
Outcomes = dict[str, list[Outcome]]

#: Calls every reward function on some samples. It raises soon after the function that it is given, `given_up`, returns True.
Call = Callable[[Sequence[RewardSample], Callable[[], bool]], Outcomes]


class Ahead:
    """Samples whose rewards are being computed in the background. An exception inside ``with`` gives them up.

    A daemon thread passes the samples to the workers, so a reward that hangs does not keep the process alive. While it waits
    for one batch of outcomes, samples are collected for the next:

        add(0) ─┐        ┌─ add(1), add(2), add(3) ─┐
                └ batch [0] ──────────── batch [1, 2, 3] ───── outcomes()

    Args:
        call: calls every function that runs in workers.
    """

    def __init__(self, call: Call) -> None:
        self._call = call
        self._given_up = threading.Event()
        self._news = threading.Condition()
        # By the number of the sample: what the next batch will hold, what has been sent, and the outcomes of each function.
        self._waiting: dict[int, RewardSample] = {}
        self._sent: dict[int, RewardSample] = {}
        self._found: dict[str, dict[int, Outcome]] = {}
        self._error: BaseException | None = None
        self._at_work = False

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not None:
            self.give_up()

    def give_up(self) -> None:
        """Start no further batch, and have the present one end. Never waits."""
        self._given_up.set()

    def add(self, number: int, sample: RewardSample) -> None:
        """Have a sample scored in the next batch. Never waits.

        Args:
            number: its place in the list that `outcomes` will be called with.
            sample: the sample.
        """
        with self._news:
            self._waiting[number] = sample
            self._work()

    def outcomes(self, samples: Sequence[RewardSample], watch: Callable[[], None] | None = None) -> Outcomes:
        """Wait for the outcomes of all samples; return them in the order of the samples.

        A sample that was not added, or differs from what was added at its place, is scored now.

        Args:
            samples: all samples.
            watch: called every 0.1 s while waiting; if it raises, the samples are given up.

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
        """Start the thread if samples wait and it does not run. To be called with the lock held."""
        # After an error, such as that no worker starts, there is no other attempt: it would fail too.
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
        """Score batch after batch, each of the samples that have come during the one before."""
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

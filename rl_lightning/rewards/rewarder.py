"""The rewards of responses, by several reward functions that are isolated from the run and from each other."""

from __future__ import annotations

import logging
import math
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rl_lightning.errors import UserError
from rl_lightning.rewards.ahead import Ahead, Outcomes
from rl_lightning.rewards.bound import BoundReward
from rl_lightning.rewards.given import Rewards, as_rewards
from rl_lightning.rewards.judging import FAILURES, Judged, judged, scored
from rl_lightning.rewards.lanes import Lane, side_by_side
from rl_lightning.rewards.pool import WorkerPool
from rl_lightning.rewards.signature import bind, bind_batch
from rl_lightning.rewards.spec import BatchReward, RewardLimits, RewardSample, RewardSpec, Scores

_log = logging.getLogger(__name__)
#: Fewest samples of one call from which the fraction of failures is judged ...
_FEWEST_IN_CALL = 4
#: ... and fewest samples of all calls together.
_FEWEST_IN_TOTAL = 64


class Rewarder:
    """Computes weighted sums of rewards by functions that cannot harm the run.

    Functions run in worker processes, whether they are of a module, of the main script, of a notebook, or lambdas. If a call
    raises, hangs, crashes or returns no number, only its sample is affected: the reward is NaN, the failure is counted, and the
    first traceback of each function is logged. If too many samples fail the run stops, because then the function is at fault,
    not the sample. A reward that returns None does not apply to the sample: it is left out of the sum.

    Rewards that take all samples at once in this process (:class:`BatchReward`) are not isolated: their exceptions end the run.

    Args:
        rewards: see `as_rewards`.
        limits: see :class:`RewardLimits`.
        **changes: single limits by name, such as ``timeout_s=2.0``.

    Attributes:
        step: optimizer steps so far, for functions that ask for it by TRL's rules.

    Raises:
        UserError: for a path that cannot be imported, a function that cannot be sent to a worker, a name used twice, arguments
            that are missing or that the function does not take.
    """

    def __init__(self, rewards: Rewards, limits: RewardLimits | None = None, **changes: Any) -> None:
        self.limits = replace(limits or RewardLimits(), **changes)
        if not 0 <= self.limits.max_failed_fraction <= 1:
            raise UserError(f"max_failed_fraction is a fraction in [0, 1], not {self.limits.max_failed_fraction}")
        self.rewards = _bound(as_rewards(rewards))
        _check_together(self.rewards)
        self.step = 0
        self._tokenizer: object = None
        self._samples_seen = 0
        self._samples_failed = 0
        self._reported: set[str] = set()
        self._make_processes()

    def _make_processes(self) -> None:
        far = [reward for reward in self.rewards if not reward.in_process]
        apart = [[reward] for reward in far if reward.concurrency is not None]
        shared = [reward for reward in far if reward.concurrency is None]
        self._lanes = [Lane(rewards, self._pool_of(rewards)) for rewards in ([shared] if shared else []) + apart]
        self._lock = threading.Lock()

    def _pool_of(self, rewards: Sequence[BoundReward]) -> WorkerPool:
        """Return the processes of some rewards, which have none yet."""
        limits, own, waits = self.limits, rewards[0].concurrency, rewards[0].waits
        shared = 1 if limits.workers is None else limits.workers
        return WorkerPool(
            shared if own is None else 1 if waits else own,
            limits.timeout_s,
            limits.memory_limit_gb,
            [reward.prepare for reward in rewards if reward.prepare is not None],
            limits.start_timeout_s,
            own if waits and own is not None else 1,
        )

    def __getstate__(self) -> dict[str, object]:
        processes = ("_lanes", "_lock")
        return {name: value for name, value in self.__dict__.items() if name not in processes}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._make_processes()

    def start(self, tokenizer: object = None) -> None:
        """Start the workers in the background, so that the first call of ``score`` does not wait for their imports.

        Args:
            tokenizer: of the policy, for functions that ask for it; each worker gets it once.
        """
        self._tokenizer = tokenizer
        for lane in self._lanes:
            lane.start(tokenizer)

    def close(self) -> None:
        """Kill the workers. A later ``score`` starts new ones."""
        for lane in self._lanes:
            lane.pool.close()

    def require_weight(self) -> None:
        """Refuse rewards that are all metrics, for who learns from them.

        Raises:
            UserError: if all weights are 0.
        """
        if not any(reward.weight for reward in self.rewards):
            names = ", ".join(reward.name for reward in self.rewards)
            raise UserError(f"All rewards ({names}) have weight 0, so nothing would be learnt: give one a weight")

    def check_columns(self, rows: Sequence[Mapping[str, object]]) -> None:
        """Refuse data without a column that a function cannot do without; see `BoundReward.check_columns`."""
        for reward in self.rewards:
            reward.check_columns(rows)

    def check_answers(self, answers: Sequence[object]) -> list[str | None]:
        """Return for each gold answer what the first function that objects finds wrong with it, or None; see
        `BoundReward.answer_problem`."""
        problems = ([reward.answer_problem(answer) for reward in self.rewards] for answer in answers)
        return [next(filter(None, found), None) for found in problems]

    def ahead(self) -> Ahead:
        """Return a new `Ahead`: samples added to it are scored in the background, before ``score`` is called with all of them."""
        return Ahead(lambda samples, given_up: self._from_workers(samples, given_up, batched=False))

    def score(
        self,
        samples: Sequence[RewardSample],
        ahead: Ahead | None = None,
        watch: Callable[[], None] | None = None,
    ) -> Scores:
        """Return the rewards of the samples.

        Args:
            samples: all samples.
            ahead: some of them may have been added to it already.
            watch: called every 0.1 s while rewards are waited for; if it raises, they are given up.

        Raises:
            UserError: if too large a fraction of the samples has no reward, or the workers cannot be started.
        """
        outcomes = (ahead or self.ahead()).outcomes(samples, watch)
        if any(reward.style.batched and not reward.in_process for reward in self.rewards):
            # Not ahead: what such a function sees side by side must not depend on which response ended first.
            lists = Ahead(lambda samples, given_up: self._from_workers(samples, given_up, batched=True))
            outcomes |= lists.outcomes(samples, watch)
        with self._lock:
            outcomes |= {reward.name: reward.call_here(samples) for reward in self.rewards if reward.in_process}
            found = {reward.name: [judged(one, reward) for one in outcomes[reward.name]] for reward in self.rewards}
            scores = scored(
                self.rewards, found, {name: [one.said for one in column] for name, column in outcomes.items()}
            )
            for name, column in found.items():
                self._report(name, [one for one in column if one.failure is not None], len(column))
            left = Judged(math.nan, error="It returned None: no reward with a weight applies to the sample")
            names = ", ".join(reward.name for reward in self.rewards if reward.weight)
            self._report(names, [left] * scores.failures.get("none", 0), len(samples))
            self._stop_if_hopeless(scores, found)
            return scores

    def _from_workers(self, samples: Sequence[RewardSample], given_up: Callable[[], bool], batched: bool) -> Outcomes:
        """Call the functions of one kind that run in workers on every sample. Raises soon after `given_up` returns True."""

        def job(lane: Lane) -> Callable[[Callable[[], bool]], Outcomes]:
            return lambda ended: lane.outcomes(samples, self._tokenizer, self.step, ended, batched)

        lanes = [lane for lane in self._lanes if any(reward.style.batched == batched for reward in lane.rewards)]
        return side_by_side([job(lane) for lane in lanes], given_up)

    def _report(self, name: str, failed: Sequence[Judged], samples: int) -> None:
        """Log the first failure of each function. Later ones are counted only."""
        if failed and name not in self._reported:
            self._reported.add(name)
            _log.warning(
                "Reward %s failed on %d of %d samples (later failures are only counted). The first:\n%s",
                name,
                len(failed),
                samples,
                (failed[0].error or "").rstrip(),
            )

    def _stop_if_hopeless(self, scores: Scores, found: Mapping[str, Sequence[Judged]]) -> None:
        """Raise UserError if too many samples have no reward, in this call or in all calls so far."""
        failed, seen = sum(map(math.isnan, scores.total)), len(scores.total)
        self._samples_failed += failed
        self._samples_seen += seen
        limit, scope = self.limits.max_failed_fraction, ""
        if seen < _FEWEST_IN_CALL or failed <= limit * seen:
            if self._samples_seen < _FEWEST_IN_TOTAL or self._samples_failed <= limit * self._samples_seen:
                return
            failed, seen, scope = self._samples_failed, self._samples_seen, " so far"
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(scores.failures.items()) if kind in FAILURES)
        raise UserError(
            f"{failed} of {seen} samples{scope} got no reward ({kinds}), more than the allowed fraction {limit:g}."
            f"{self._first_error(found)} Mend the reward function (the log has the traceback), give it more time (timeout_s, now "
            f"{self.limits.timeout_s:g} s), or raise max_failed_fraction."
        )

    def _first_error(self, found: Mapping[str, Sequence[Judged]]) -> str:
        """Return a sentence about the first failure of a reward that counts."""
        for reward in self.rewards:
            if reward.weight:
                for one in found[reward.name]:
                    if one.failure is not None:
                        lines = [line for line in (one.error or "").splitlines() if line.strip()]
                        said = [line for line in lines if not line.startswith("more: ")]  # a note, which names a page
                        return f" First, {reward.name}: {said[-1] if said else 'it did not say why'}."
        names = ", ".join(reward.name for reward in self.rewards if reward.weight)
        return f" None of the rewards ({names}) applies to them: each returned None."


def _bound(rewards: Sequence[RewardSpec | BatchReward]) -> list[BoundReward]:
    """Return rewards that are checked, with numbers where functions that have no name of their own would be called the same."""
    bound = [bind_batch(reward) if isinstance(reward, BatchReward) else bind(reward) for reward in rewards]
    seen: Counter[str] = Counter()
    for place, (given, reward) in enumerate(zip(rewards, bound, strict=True)):
        seen[reward.name] += 1
        unnamed = isinstance(given, RewardSpec) and given.name is None and not isinstance(given.function, str)
        if unnamed and seen[reward.name] > 1:
            bound[place] = replace(reward, name=f"{reward.name}_{seen[reward.name]}")
    return bound


def _check_together(rewards: list[BoundReward]) -> None:
    if not rewards:
        raise UserError("No reward is given: list at least one, such as rl_lightning.rewards.functions.answer_correct")
    twice = [name for name, count in Counter(reward.name for reward in rewards).items() if count > 1]
    if twice:
        raise UserError(f"Two rewards are called {twice[0]!r}: give one of them another name")

"""The rewards of responses, by several reward functions that are isolated from the run and from each other."""

from __future__ import annotations

import logging
import math
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, SupportsFloat

from rl_lightning.errors import UserError
from rl_lightning.rewards.ahead import Ahead, Outcomes
from rl_lightning.rewards.pool import WorkerPool
from rl_lightning.rewards.signature import BoundReward, bind, bind_batch
from rl_lightning.rewards.spec import BatchReward, Outcome, RewardLimits, RewardSample, RewardSpec, Scores

_log = logging.getLogger(__name__)
#: Fewest samples of one call from which the fraction of failures is judged ...
_FEWEST_IN_CALL = 4
#: ... and fewest samples of all calls together.
_FEWEST_IN_TOTAL = 64
_FAILURES = ("raised", "timeout", "died", "nan")


class Rewarder:
    """Computes weighted sums of rewards by functions that cannot harm the run.

    Functions run in worker processes. If a call raises, hangs, crashes or returns no number, only its sample is affected: the
    reward is NaN, the failure is counted, and the first traceback of each function is logged. If too many samples fail the
    run stops, because then the function is at fault, not the sample.

    Callables that cannot be sent to another process (lambdas, functions of the main script or a notebook) run in this
    process: exceptions are isolated too, but a call that hangs hangs the run. Rewards that take all samples at once
    (:class:`BatchReward`) run in this process as well, and their exceptions end the run.

    Args:
        rewards: specifications of functions, batched rewards, or plain callables with weight 1.
        limits: see :class:`RewardLimits`.
        **changes: single limits by name, such as ``timeout_s=2.0``.

    Raises:
        UserError: for a path that cannot be imported, a name used twice, arguments that are missing or that the function does
            not take, or if all weights are 0.
    """

    def __init__(
        self,
        rewards: Sequence[RewardSpec | BatchReward | Callable[..., Any]],
        limits: RewardLimits | None = None,
        **changes: Any,
    ) -> None:
        self.limits = replace(limits or RewardLimits(), **changes)
        if not 0 <= self.limits.max_failed_fraction <= 1:
            raise UserError(f"max_failed_fraction is a fraction in [0, 1], not {self.limits.max_failed_fraction}")
        self.rewards = [_bind(reward) for reward in rewards]
        _check_together(self.rewards)
        self._samples_seen = 0
        self._samples_failed = 0
        self._reported: set[str] = set()
        self._make_processes()

    def _make_processes(self) -> None:
        self._pool = WorkerPool(
            self.limits.workers,
            self.limits.timeout_s,
            self.limits.memory_limit_gb,
            [reward.prepare for reward in self.rewards if reward.prepare is not None],
            self.limits.start_timeout_s,
        )
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        processes = ("_pool", "_lock")
        return {name: value for name, value in self.__dict__.items() if name not in processes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._make_processes()

    def start(self) -> None:
        """Start the workers in the background, so that the first call of ``score`` does not wait for their imports."""
        far = [reward.function for reward in self.rewards if not reward.in_process]
        if far:
            self._pool.start(far)

    def close(self) -> None:
        """Kill the workers. A later ``score`` starts new ones."""
        self._pool.close()

    def check_answers(self, answers: Sequence[Any]) -> list[str | None]:
        """Return for each gold answer what the first function that objects finds wrong with it, or None; see
        `BoundReward.answer_problem`."""
        problems = ([reward.answer_problem(answer) for reward in self.rewards] for answer in answers)
        return [next(filter(None, found), None) for found in problems]

    def ahead(self) -> Ahead:
        """Return a new `Ahead`: samples added to it are scored in the background, before ``score`` is called with all of them."""
        return Ahead(self._outcomes_from_workers)

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
        with self._lock:
            outcomes |= {reward.name: reward.call_here(samples, watch) for reward in self.rewards if reward.in_process}
            failures: Counter[str] = Counter()
            first_error: tuple[str, Outcome] | None = None
            components: dict[str, list[float]] = {}
            for reward in self.rewards:
                judged = [_judged(outcome) for outcome in outcomes[reward.name]]
                components[reward.name] = [outcome.value for outcome in judged]
                for outcome in judged:
                    failures.update(outcome.counts)
                failed = [outcome for outcome in judged if math.isnan(outcome.value)]
                failures.update(_kind(outcome) for outcome in failed)
                if failed:
                    self._report(reward.name, failed[0], len(failed), len(samples))
                if failed and reward.weight and first_error is None:
                    first_error = (reward.name, failed[0])
            weighted = [reward for reward in self.rewards if reward.weight]
            columns = [[reward.weight * value for value in components[reward.name]] for reward in weighted]
            total = [math.fsum(row) for row in zip(*columns, strict=True)]
            self._stop_if_hopeless(total, failures, first_error)
            return Scores(total, components, dict(failures))

    def _outcomes_from_workers(self, samples: Sequence[RewardSample], given_up: Callable[[], bool]) -> Outcomes:
        """Call every function that runs in workers on every sample. Raises soon after `given_up` returns True."""
        far = [reward for reward in self.rewards if not reward.in_process]
        calls = [(reward.function, reward.keywords(sample)) for reward in far for sample in samples]
        done = iter(self._pool.map(calls, given_up) if calls else [])
        return {reward.name: [next(done) for _ in samples] for reward in far}

    def _report(self, name: str, outcome: Outcome, failed: int, samples: int) -> None:
        """Log the first failure of each function. Later ones are counted only."""
        if name not in self._reported:
            self._reported.add(name)
            _log.warning(
                "Reward %s failed on %d of %d samples (later failures are only counted). The first:\n%s",
                name,
                failed,
                samples,
                (outcome.error or "").rstrip(),
            )

    def _stop_if_hopeless(
        self, total: list[float], failures: Counter[str], first_error: tuple[str, Outcome] | None
    ) -> None:
        """Raise UserError if too many samples have no reward, in this call or in all calls so far."""
        failed, seen = sum(map(math.isnan, total)), len(total)
        self._samples_failed += failed
        self._samples_seen += seen
        limit, scope = self.limits.max_failed_fraction, ""
        if seen < _FEWEST_IN_CALL or failed <= limit * seen:
            if self._samples_seen < _FEWEST_IN_TOTAL or self._samples_failed <= limit * self._samples_seen:
                return
            failed, seen, scope = self._samples_failed, self._samples_seen, " so far"
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(failures.items()) if kind in _FAILURES)
        cause = ""
        if first_error is not None:
            cause = f" First, {first_error[0]}: {(first_error[1].error or '').strip().splitlines()[-1]}."
        raise UserError(
            f"{failed} of {seen} samples{scope} got no reward ({kinds}), more than the allowed fraction {limit:g}."
            f"{cause} Mend the reward function (the log has the traceback), give it more time (timeout_s, now "
            f"{self.limits.timeout_s:g} s), or raise max_failed_fraction."
        )


def _bind(reward: RewardSpec | BatchReward | Callable[..., Any]) -> BoundReward:
    if isinstance(reward, BatchReward):
        return bind_batch(reward)
    if isinstance(reward, RewardSpec):
        if reward.function is None:
            raise UserError(
                f"The reward model {reward.model!r} must be loaded first: a DataModule does that, list it under data.init_args.rewards"
            )
        return bind(reward.function, reward.weight, reward.name, reward.arguments)
    return bind(reward, 1.0, None, {})


def _check_together(rewards: list[BoundReward]) -> None:
    if not rewards:
        raise UserError("No reward is given: list at least one, such as rl_lightning.rewards.functions.answer_correct")
    twice = [name for name, count in Counter(reward.name for reward in rewards).items() if count > 1]
    if twice:
        raise UserError(f"Two rewards are called {twice[0]!r}: give one of them another name")
    if not any(reward.weight for reward in rewards):
        names = ", ".join(reward.name for reward in rewards)
        raise UserError(f"All rewards ({names}) have weight 0, so nothing would be learnt: give one a weight")


def _judged(outcome: Outcome) -> Outcome:
    """Return the outcome with a float as its value: NaN for failures and for values that are not finite numbers."""
    if outcome.kind != "ok":
        return replace(outcome, value=math.nan)
    try:
        number = float(outcome.value) if isinstance(outcome.value, SupportsFloat) else math.nan
    except Exception:  # a tensor of several elements, say
        number = math.nan
    if math.isfinite(number):
        return replace(outcome, value=number)
    # Python refuses to print an integer that is too large for a float.
    shown = "an integer too large for a float" if isinstance(outcome.value, int) else repr(str(outcome.value)[:80])
    return replace(outcome, value=math.nan, error=f"It returned {shown}, not a finite number")


def _kind(outcome: Outcome) -> str:
    return "nan" if outcome.kind == "ok" else outcome.kind

"""Rewards side by side: those that share processes take turns, the others do not wait for each other."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from rl_lightning.rewards.ahead import Outcomes
from rl_lightning.rewards.bound import BoundReward
from rl_lightning.rewards.crew import Function
from rl_lightning.rewards.pool import WorkerPool
from rl_lightning.rewards.spec import Outcome, RewardSample

_log = logging.getLogger(__name__)

GivenUp = Callable[[], bool]
#: A reward, and the samples of one call of it.
_Part = tuple[BoundReward, list[RewardSample]]


class Lane:
    """Rewards that share worker processes.

    Args:
        rewards: at least one.
        pool: their processes.
    """

    def __init__(self, rewards: Sequence[BoundReward], pool: WorkerPool) -> None:
        self.rewards = rewards
        self.pool = pool
        self._sent: dict[str, Function] = {}
        self._tokenizer: object = None
        self._told: set[str] = set()

    def start(self, tokenizer: object) -> None:
        """Start the workers in the background, and have them load the functions.

        Args:
            tokenizer: for functions that ask for it.
        """
        self._prepare(tokenizer)
        self.pool.start(list(self._sent.values()))

    def _prepare(self, tokenizer: object) -> None:
        if not self._sent or tokenizer is not self._tokenizer:
            self._tokenizer = tokenizer
            self._sent = {reward.name: reward.sent(tokenizer) for reward in self.rewards}

    def outcomes(
        self, samples: Sequence[RewardSample], tokenizer: object, step: int, given_up: GivenUp, batched: bool
    ) -> Outcomes:
        """Call every function of one kind on every sample.

        Args:
            samples: what to call them on.
            tokenizer: for functions that ask for it.
            step: optimizer steps so far.
            given_up: asked every 0.1 s; once it returns True the calls end.
            batched: call the functions that take lists; else the others.
        """
        rewards = [reward for reward in self.rewards if reward.style.batched == batched]
        self._prepare(tokenizer)
        parts = [(reward, part) for reward in rewards for part in reward.parts(samples)]
        made = dict(enumerate(self._map(parts, step, given_up)))
        broken = [place for place, one in made.items() if one.kind in ("raised", "died") and len(parts[place][1]) > 1]
        single = [(parts[place][0], [sample]) for place in broken for sample in parts[place][1]]
        again = iter(self._map(single, step, given_up))
        found: Outcomes = {reward.name: [] for reward in rewards}
        for place, (reward, part) in enumerate(parts):
            if place in broken:
                self._tell(reward, made[place], len(part))
                found[reward.name] += [one for _ in part for one in reward.each(next(again), 1)]
            else:
                found[reward.name] += reward.each(made[place], len(part))
        return found

    def _map(self, parts: Sequence[_Part], step: int, given_up: GivenUp) -> list[Outcome]:
        calls = [(self._sent[reward.name], reward.keywords(part, step)) for reward, part in parts]
        return self.pool.map(calls, given_up, [len(part) for _, part in parts]) if calls else []

    def _tell(self, reward: BoundReward, outcome: Outcome, count: int) -> None:
        """Log once a function that calls with several samples failed, and that these were made again sample by sample."""
        if reward.name not in self._told:
            self._told.add(reward.name)
            _log.warning(
                "Reward %s %s on a list of %d samples; it is called again for each of them alone, as in later cases. It said:\n%s",
                reward.name,
                "raised" if outcome.kind == "raised" else "ended its process",
                count,
                (outcome.error or "").rstrip(),
            )


def side_by_side(jobs: Sequence[Callable[[GivenUp], Outcomes]], given_up: GivenUp) -> Outcomes:
    """Do jobs at the same time, and return all that they found; if one raises, the others are given up.

    Args:
        jobs: each is given a function that says whether it is given up.
        given_up: whether all are.
    """
    if len(jobs) == 1:
        return jobs[0](given_up)
    results: list[Outcomes] = [{} for _ in jobs]
    errors: list[BaseException] = []

    def work(place: int) -> None:
        try:
            results[place] = jobs[place](lambda: given_up() or bool(errors))
        except BaseException as error:
            errors.append(error)

    # Daemons, so that a reward that hangs does not keep the process alive.
    threads = [threading.Thread(target=work, args=(place,), name="rewards", daemon=True) for place in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return {name: outcomes for result in results for name, outcomes in result.items()}

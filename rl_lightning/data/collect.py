"""One rollout, from prompts to advantages."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from rl_lightning.data.encoded import EncodedPrompt
from rl_lightning.data.refill import Refilling, logprobs_when_sampled
from rl_lightning.data.rollout_epoch import RolloutEpoch
from rl_lightning.data.sampler import Sampler
from rl_lightning.data.steps import Layout, StepSizes, permutation
from rl_lightning.data.supply import Filling, Supply
from rl_lightning.errors import UserError
from rl_lightning.generation import Sampling
from rl_lightning.hooks import Refill, Stages, Watch
from rl_lightning.learner import PolicyLearner, SampledPolicy
from rl_lightning.measures import Seconds, rollout_metrics
from rl_lightning.shapes import require
from rl_lightning.strategies import metrics_of_all_ranks, sum_over_ranks
from rl_lightning.travel import brought_home
from rl_lightning.types import Rollout

log = logging.getLogger(__name__)


@dataclass
class Collector:
    """Makes one rollout after another.

    Args:
        layout: the groups of a rollout.
        sizes: how its optimizer steps are cut into microbatches.
        sampler: asks for responses and rewards.
        policy: returns what is sampled, once the strategy has placed it.
        module: the algorithm.
        stages: the rollout callbacks.
        prompts: all training prompts.
        sampling: how responses are sampled.
        refill: how far to go when callbacks drop groups; None where no callback can.
        supply: where sampling is over the whole run.
    """

    layout: Layout
    sizes: StepSizes
    sampler: Sampler
    policy: Callable[[], SampledPolicy]
    module: PolicyLearner
    stages: Stages
    prompts: Sequence[EncodedPrompt]
    sampling: Sampling
    refill: Refill | None
    supply: Supply = field(default_factory=Supply)

    @property
    def trainer(self) -> Trainer:
        """The trainer whose callbacks act on rollouts."""
        return self.stages.trainer

    @property
    def watch(self) -> Watch:
        """How callbacks watch and end the run."""
        return self.sampler.watch

    def total(self, sums: Tensor) -> Tensor:
        """Return sums of this rank's rows as those of all ranks; every rank must call it."""
        return sum_over_ranks(self.trainer, sums)

    def microbatches_per_epoch(self) -> int:
        """Return how many forward passes each rank trains a rollout with."""
        return self.layout.passes(self.sizes)

    def epoch(self, number: int, state: dict[str, object] | None) -> RolloutEpoch:
        """Collect rollout `number`, or restore it, and return what it is trained on."""
        rollout = self.collect(number) if state is None else Rollout.from_state_dict(state)
        longest, from_copy = self.sampling.max_new_tokens, self.sampler.generator.samples_from_copy
        return RolloutEpoch(self.layout, self.sizes, self.module, self.total, number, rollout, longest, from_copy)

    def collect(self, number: int) -> Rollout:
        """Return this rank's rows of rollout `number`, in the order of the first epoch, ready to be trained on.

        `rollout/*` metrics of reward, length and correctness are over everything that was sampled for the rollout, dropped or
        not; times are sums over chunks. Rewards are those before the divergence. `rollout/answers` counts all responses
        that were sampled in the run so far.
        """
        filling = self.filling(number)
        while filling.needs_more():
            part = self.respond(filling.numbers())  # 1 prompts, 2 responses, 3 rewards
            self.stages.rewards(part)  # 4 callbacks change rewards
            filling.add(part, self.stages.keep(part, self.layout.group_size))  # 5 callbacks drop groups
        filled = filling.end()
        self._report(filled.shortage)
        rollout = replace(filled.rollout, metrics=dict(filled.metrics))
        if filled.sampled is not None:
            rollout.metrics |= filled.sampled.metrics | rollout_metrics(filled.sampled, self.total)
        rollout = self.score(rollout, number, filled.stale)  # 6 the policy, the reference and the critic look at it
        self.module.on_rollout_scored(rollout)  # 7 advantages, by the algorithm
        self.stages.advantages(rollout)  # or by callbacks

        rollout.metrics["rollout/answers"] = float(filled.supply.cursor * self.layout.group_size)
        rollout = replace(rollout, metrics=metrics_of_all_ranks(rollout.metrics))
        self.stages.end(rollout)
        rollout.metrics.update(metrics_of_all_ranks(rollout.metrics))
        self.supply = filled.supply
        return rollout

    def filling(self, number: int) -> Filling:
        """Return rollout `number`, still empty."""
        if self.refill is None:
            return Filling(self.layout, number, self.supply)
        pad_id = self.module.policy_files.tokenizer.pad_token_id
        return Refilling(self.layout, number, self.supply, self.refill, len(self.prompts), pad_id)

    def respond(self, numbers: Sequence[int]) -> Rollout:
        """Return the scored responses to some prompts, group by group.

        The run goes through all prompts in a random order, then through all in another one, and so on.

        Args:
            numbers: of the prompts over the whole run. Rows come in this order, whatever order is best for sampling.
        """
        total, ascending = len(self.prompts), sorted(numbers)
        orders = {turn: permutation(total, self.sampler.seed, turn) for turn in {number // total for number in numbers}}
        prompts = [self.prompts[int(orders[number // total][number % total])] for number in ascending]
        with self.watch.agreed():
            part = self.sampler.respond(
                self.policy(), "train", prompts, ascending, self.layout.group_size, self.sampling
            )
        place = {number: place for place, number in enumerate(ascending)}
        return part.select(self.layout.rows(torch.tensor([place[number] for number in numbers])))

    def score(self, rollout: Rollout, number: int, stale: int) -> Rollout:
        """Let the algorithm look at a rollout in the microbatches of its first epoch, so that the same kernels run on the same
        shapes in training, and the first ratio is 1 to the last bit.

        Args:
            rollout: in the order of the first epoch.
            number: of the rollout.
            stale: its groups that waited since an earlier one, over all ranks. Theirs is another old policy than the present one.
        """
        started = time.perf_counter()
        # All ranks do the same passes, whether their own rows are stale or not.
        single_update = self.layout.updates == 1 and not stale
        with self.sampler.profile("[rl_lightning]score"), self.module.rollout_mode():
            parts = []
            for rows in self._first_epoch(rollout):  # the rollout stays on the host
                batch = rollout.microbatch(rows).to(self.module.device)
                parts.append((rows, brought_home(self.module.score(batch, single_update=single_update))))
        rollout = replace(rollout, **joined_scores(rollout, parts, type(self.module).__name__))
        rollout.metrics["time/score_s"] = Seconds(time.perf_counter() - started)
        return replace(rollout, old_logprobs=logprobs_when_sampled(rollout, number)) if stale else rollout

    def _first_epoch(self, rollout: Rollout) -> Iterator[Tensor]:
        """Yield the rows of the microbatches of a rollout's first epoch; the run may be stopped between two."""
        for step in torch.arange(len(rollout)).split(self.sizes.minibatch):
            for part in step.split(self.sizes.cut(rollout, step)):
                self.watch.on_boundary(False)
                yield part

    def _report(self, shortage: str | None) -> None:
        """Warn of a rollout that is not full, and end the run if that is wanted."""
        if shortage is not None and self.trainer.is_global_zero:
            log.warning("%s", shortage)
        if shortage is not None and self.refill is not None and self.refill.on_exhaustion == "stop":
            self.trainer.should_stop = True


def joined_scores(
    rollout: Rollout, parts: Sequence[tuple[Tensor, dict[str, Tensor]]], algorithm: str
) -> dict[str, Any]:
    """Return what an algorithm said of some rows as fields of the whole rollout: names → (B, R) or (B,).

    Args:
        rollout: B rows of R response columns.
        parts: the rows (b,) of each forward pass, and names → (b, r) or (b,) of these rows. r ≤ R: a pass has no columns
            that are padding in all of its rows.
        algorithm: its name, for messages.

    Raises:
        UserError: for another name or shape.
    """
    known = {item.name for item in fields(Rollout)}
    scored: dict[str, Tensor] = {}
    for rows, part in parts:
        width = int(rollout.response_attention[rows].any(0).sum())
        for name, value in part.items():
            what = f"what {algorithm}.score returns as {name!r}"
            if name not in known:
                raise UserError(f"{what} has no place in a rollout: a Rollout has no field of that name")
            if isinstance(value, Tensor) and value.dim() == 1:
                require(what, value, (len(rows),), "one number a response")
                scored.setdefault(name, value.new_zeros(len(rollout)))[rows] = value
            else:
                require(what, value, (len(rows), width), "one number a response token")
                scored.setdefault(name, value.new_zeros(rollout.response_mask.shape))[rows, :width] = value
    return scored

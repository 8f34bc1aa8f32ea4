"""Online data: the policy's own samples, one rollout a Lightning epoch."""

from __future__ import annotations

import logging
from typing import Any, cast

from rl_lightning.data.collect import Collector
from rl_lightning.data.cuts import rollout_passes
from rl_lightning.data.sampling import SamplingDataModule
from rl_lightning.data.sizes import (
    accumulate,
    bound_line,
    check_cuts,
    equal_cuts,
    refuse_partial_epochs,
    share_of_rank,
)
from rl_lightning.data.steps import Layout, StepSizes
from rl_lightning.data.supply import Supply
from rl_lightning.errors import UserError
from rl_lightning.hooks import Refill, Stages
from rl_lightning.learner import PolicyLearner, trained_policy
from rl_lightning.strategies import data_parallel_rank, data_parallel_size

log = logging.getLogger(__name__)


class RolloutDataModule(SamplingDataModule):
    """Samples the policy, scores the samples, and serves them as microbatches.

    Where a rollout serves one update, responses whose advantages are all 0 are not computed again if the algorithm has no
    gradient there (`learns_from_zero_advantages`). They count in every mean of the loss as before, so the gradient is the
    same; but what is observed in training steps, such as `policy/entropy`, is then over the responses that are left, whose
    share is logged as `rollout/forwarded_fraction`; where none is left, over the first response to each prompt.

    Every size is counted over all ranks, so the same YAML means the same on one device and on eight.

    Args:
        prompts_per_rollout: prompts that a rollout answers.
        group_size: responses to each of them, G.
        epochs_per_rollout: times that a rollout is gone through.
        minibatch_size: responses in an optimizer step, whole groups; the whole rollout if null (strictly on-policy).
        microbatch_size: responses in one forward pass of one device; as many as the step has there if null. Changes
            memory and speed, never the gradient.
        max_tokens_per_microbatch: instead of it, the tokens in one forward pass of one device at most. A prompt counts once for
            its responses in the pass, padding does not. An optimizer step has the number of passes that the longest prompt
            and the longest responses would need, cut so that the largest of them is as small as it can be.
        **sampling_options: prompts, sampling, rewards and so on: see `SamplingDataModule`.
    """

    serves = ("rollouts",)

    def __init__(
        self,
        prompts_per_rollout: int = 32,
        group_size: int = 8,
        epochs_per_rollout: int = 1,
        minibatch_size: int | None = None,
        microbatch_size: int | None = None,
        max_tokens_per_microbatch: int | None = None,
        **sampling_options: Any,
    ) -> None:
        super().__init__(**sampling_options)
        for name, value in (
            ("prompts_per_rollout", prompts_per_rollout),
            ("group_size", group_size),
            ("epochs_per_rollout", epochs_per_rollout),
        ):
            if value < 1:
                raise UserError(f"{name} must be at least 1, not {value}")
        self.prompts_per_rollout = prompts_per_rollout
        self.group_size = group_size
        self.epochs_per_rollout = epochs_per_rollout
        self.minibatch_size = prompts_per_rollout * group_size if minibatch_size is None else minibatch_size
        check_cuts(microbatch_size, max_tokens_per_microbatch)
        self.microbatch_size = microbatch_size
        self.max_tokens_per_microbatch = max_tokens_per_microbatch
        #: Makes rollouts; there from the set-up of `fit` on.
        self.collector: Collector | None = None
        #: How to fill a rollout when callbacks drop groups; None where none does.
        self.refill: Refill | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass over a rollout."""
        return self.prompts_per_rollout * self.group_size // self.minibatch_size

    @property
    def train_prompts(self) -> int:
        """How many training prompts there are."""
        return len(self.encoded["train"])

    def describe(self) -> dict[str, str]:
        """Return the lines of the run card that speak of the data."""
        rows, updates = self.prompts_per_rollout * self.group_size, self.layout.updates
        policy = "strictly on-policy" if updates == 1 else "off-policy after the first update of each rollout"
        bound = bound_line(self.max_tokens_per_microbatch)
        chunk = "" if self.refill is None else f", in up to {self._chunks()} until enough groups are kept"
        return super().describe() | {
            "rollout": f"{self.prompts_per_rollout} prompts × {self.group_size} responses = {rows}, up to "
            f"{self.sampling.max_new_tokens} tokens each, temperature {self.sampling.temperature:g}{chunk}",
            "update": f"{updates} a rollout, {self.minibatch_size} responses (up to "
            f"{self.minibatch_size * self.sampling.max_new_tokens:,} tokens) each in {self.sizes.accumulate} "
            f"microbatch(es){bound}; {policy}",
        }

    def setup(self, stage: str) -> None:
        """Check sizes and callbacks before anything is sampled, then set up prompts and rewards."""
        if stage == "fit":
            self.sampling.check(training=True)
            rows = self.prompts_per_rollout * self.group_size
            if self.minibatch_size < 1 or rows % self.minibatch_size:
                raise UserError(
                    f"minibatch_size={self.minibatch_size} must divide prompts_per_rollout × group_size = {rows}"
                )
            share_of_rank(self.minibatch_size, data_parallel_size(self.run), unit=self.group_size)
            if self.max_tokens_per_microbatch is None:
                self._plan()
            stages = Stages(self.run)
            stages.check(self.module)
            self.refill = stages.refill()
        super().setup(stage)
        if stage != "fit":
            return
        if self.max_tokens_per_microbatch is not None:
            self._plan()
        if self.train_prompts < self.prompts_per_rollout:
            log.warning(
                "There are %d training prompts, and a rollout answers %d: some are answered several times, each time as a group of its own",
                self.train_prompts,
                self.prompts_per_rollout,
            )
        self.loader.source = self.collector = self.make_collector()

    def _plan(self) -> None:
        """Cut optimizer steps up; by tokens only once the prompts are known."""
        assert self.trainer is not None
        rows, budget = (
            share_of_rank(self.minibatch_size, self.layout.ranks, self.group_size),
            self.max_tokens_per_microbatch,
        )
        if budget is None:
            sizes = equal_cuts(rows, self.microbatch_size)
        else:
            longest = int(self.encoded["train"].ids.lengths.max())
            passes = rollout_passes(budget, rows, self.group_size, longest, self.sampling.max_new_tokens)
            sizes = StepSizes(rows, None, passes)
        self.sizes = accumulate(self.trainer, sizes)
        refuse_partial_epochs(self.trainer, self.microbatches_per_epoch())

    def _chunks(self) -> str:
        assert self.refill is not None
        return f"{self.refill.max_chunks} chunks of {self.refill.prompts_per_chunk or self.prompts_per_rollout} prompts"

    def state_dict(self) -> dict[str, object]:
        """Return how far training and sampling have come."""
        supply = Supply() if self.collector is None else self.collector.supply
        return super().state_dict() | {"supply": supply.state_dict()}

    def record(self) -> dict[str, object]:
        """Return what may not change between a checkpoint and a run that goes on from it."""
        sizes = ("prompts_per_rollout", "group_size", "epochs_per_rollout", "minibatch_size")
        return super().record() | {f"data.init_args.{name}": getattr(self, name) for name in sizes}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the same supply of prompts."""
        super().load_state_dict(state_dict)
        if self.collector is not None:
            self.collector.supply = Supply.from_state_dict(state_dict["supply"])

    def microbatches_per_epoch(self) -> int:
        """Return how many forward passes each rank trains a rollout with."""
        return self.layout.passes(self.sizes)

    @property
    def layout(self) -> Layout:
        """The groups of a rollout as optimizer steps × places."""
        assert self.trainer is not None
        return Layout(
            groups=self.prompts_per_rollout,
            group_size=self.group_size,
            steps=self.steps_per_epoch,
            epochs=self.epochs_per_rollout,
            rank=data_parallel_rank(self.trainer),
            ranks=data_parallel_size(self.trainer),
            seed=self.seed,
        )

    def make_collector(self) -> Collector:
        """Return what makes the rollouts of this run; override it for another way to collect them."""
        assert self.trainer is not None
        return Collector(
            layout=self.layout,
            sizes=self.sizes,
            sampler=self.sampler,
            policy=trained_policy(self.trainer, self.ends),
            module=cast(PolicyLearner, self.module),
            stages=Stages(self.trainer),
            prompts=self.encoded["train"],
            sampling=self.sampling,
            refill=self.refill,
            supply=Supply() if self.collector is None else self.collector.supply,
        )

"""Online data: the policy's own samples, one rollout a Lightning epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from rl_lightning.data.collect import Collector, Supply, find_refill, groups_that_count
from rl_lightning.data.cuts import rollout_passes
from rl_lightning.data.loader import (
    StepSizes,
    bound_line,
    check_cuts,
    permutation,
    plan_by_tokens,
    plan_steps,
    refuse_partial_epochs,
    share_of_rank,
    step_totals,
    step_weights,
)
from rl_lightning.data.sampling import SamplingDataModule
from rl_lightning.data.scoring import (
    logprobs_when_sampled,
    rollout_metrics,
    score_by_policy,
    teaches,
    worth_computing,
    worth_observing,
)
from rl_lightning.data.stages import change_rewards, check_callbacks, kept_groups, make_advantages, rollout_callbacks
from rl_lightning.errors import UserError
from rl_lightning.hooks import Refill, RolloutCallback
from rl_lightning.measures import Mean
from rl_lightning.strategies import data_parallel_rank, data_parallel_size, from_every_rank, metrics_of_all_ranks
from rl_lightning.types import Microbatch, Rollout


class RolloutDataModule(SamplingDataModule):
    """Samples the policy, scores the samples, and serves them as minibatches.

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
        self.supply = Supply()
        #: How to fill a rollout when callbacks drop groups; None where none does.
        self.refill: Refill | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass over a rollout."""
        return self.prompts_per_rollout * self.group_size // self.minibatch_size

    @property
    def updates_per_rollout(self) -> int:
        """Optimizer steps that one rollout serves."""
        return self.epochs_per_rollout * self.steps_per_epoch

    @property
    def train_prompts(self) -> int:
        """How many training prompts there are."""
        return len(self._encoded["train"])

    def describe(self) -> dict[str, str]:
        """Return the lines of the run card that speak of the data."""
        rows, updates = self.prompts_per_rollout * self.group_size, self.updates_per_rollout
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
        assert self.trainer is not None
        if stage == "fit":
            self.sampling.check(training=True)
            rows = self.prompts_per_rollout * self.group_size
            if self.minibatch_size < 1 or rows % self.minibatch_size:
                raise UserError(
                    f"minibatch_size={self.minibatch_size} must divide prompts_per_rollout × group_size = {rows}"
                )
            share_of_rank(self.trainer, self.minibatch_size, unit=self.group_size)
            if self.max_tokens_per_microbatch is None:
                self._plan()
            check_callbacks(self.trainer, self.module)
            self.refill = find_refill(self._rollout_callbacks())
        super().setup(stage)
        if stage != "fit":
            return
        if self.max_tokens_per_microbatch is not None:
            self._plan()
        chunk = (self.refill and self.refill.prompts_per_chunk) or 0
        for name, size in (("prompts_per_rollout", self.prompts_per_rollout), ("prompts_per_chunk", chunk)):
            if self.train_prompts < size:
                raise UserError(f"{name}={size} but there are only {self.train_prompts} training prompts")

    def _plan(self) -> None:
        """Cut optimizer steps up; by tokens only once the prompts are known."""
        assert self.trainer is not None
        rows, budget = share_of_rank(self.trainer, self.minibatch_size, self.group_size), self.max_tokens_per_microbatch
        if budget is None:
            self.sizes = plan_steps(self.trainer, rows, self.microbatch_size)
        else:
            longest = max(len(prompt.input_ids) for prompt in self._encoded["train"])
            passes = rollout_passes(budget, rows, self.group_size, longest, self.sampling.max_new_tokens)
            self.sizes = plan_by_tokens(self.trainer, rows, passes)
        refuse_partial_epochs(self.trainer, self.microbatches_per_epoch())

    def _chunks(self) -> str:
        assert self.refill is not None
        return f"{self.refill.max_chunks} chunks of {self.refill.prompts_per_chunk or self.prompts_per_rollout} prompts"

    def state_dict(self) -> dict[str, Any]:
        """Return how far training and sampling have come."""
        return super().state_dict() | {"supply": self.supply.state_dict()}

    def record(self) -> dict[str, Any]:
        """Return what may not change between a checkpoint and a run that goes on from it."""
        sizes = ("prompts_per_rollout", "group_size", "epochs_per_rollout", "minibatch_size")
        return super().record() | {f"data.init_args.{name}": getattr(self, name) for name in sizes}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        super().load_state_dict(state_dict)
        self.supply = Supply.from_state_dict(state_dict["supply"])

    def microbatches_per_epoch(self) -> int:
        """Return the number of forward passes that a rollout is trained with on each rank."""
        return self.updates_per_rollout * self.sizes.accumulate

    def epoch(self, number: int, state: dict[str, Any] | None) -> RolloutEpoch:
        """Sample rollout `number`, or restore it."""
        assert self.trainer is not None
        rollout = self.collect(number) if state is None else Rollout.from_state_dict(state).to(self.module.device)
        return RolloutEpoch(self, number, rollout, self.sizes)

    # ------------------------------------------------------------- one rollout

    def collect(self, number: int) -> Rollout:
        """Sample, score and shape rollout `number`, ready to be trained on.

        Where callbacks drop groups, `rollout/*` metrics of reward, length and correctness are over everything that was
        sampled for it, dropped or not, and times are sums over chunks. Rewards are those before the divergence.
        `rollout/answers` counts all responses sampled in the run so far.
        """
        rollout, supply = self._whole(number) if self.refill is None else self._filled(number, self.refill)
        assert self.trainer is not None
        self.module.on_rollout_scored(rollout)
        make_advantages(self.trainer, self.module, rollout)
        if self.refill is None:
            rollout.metrics.update(rollout_metrics(rollout, self.module.total))
        rollout.metrics["rollout/answers"] = float(supply.cursor * self.group_size)
        rollout = replace(rollout, metrics=metrics_of_all_ranks(rollout.metrics))
        for callback in self._rollout_callbacks():
            callback.on_rollout_end(self.trainer, self.module, rollout)
        rollout.metrics.update(metrics_of_all_ranks(rollout.metrics))
        self.supply = supply
        return rollout

    def _whole(self, number: int) -> tuple[Rollout, Supply]:
        """Sample as many prompts as a rollout has, and score them."""
        # The order of the first epoch is the order of the rows; groups stay whole. See `OnlineModule.score`.
        order = self.dealt(permutation(self.prompts_per_rollout, self.seed, number, 0))
        rollout = self.sample((self.supply.cursor + order.sort().values).tolist())
        rollout = self.reward(rollout.select(self.rows_of_groups(order.argsort().argsort())))
        rollout = score_by_policy(self.module, rollout, self._first_epoch(rollout), self.updates_per_rollout == 1)
        return rollout, Supply(self.supply.cursor + self.prompts_per_rollout)

    def _filled(self, number: int, refill: Refill) -> tuple[Rollout, Supply]:
        """Sample until enough groups are kept, and score those."""
        filled = Collector(self, number, refill).fill(self.supply)
        metrics = filled.metrics(self.prompts_per_rollout)
        if filled.sampled is not None:
            metrics |= filled.sampled.metrics | rollout_metrics(filled.sampled, self.module.total)
        rollout = replace(filled.rollout.to(self.module.device), metrics=metrics)
        # All ranks do the same passes, whether their own rows are stale or not.
        rollout = score_by_policy(
            self.module, rollout, self._first_epoch(rollout), self.updates_per_rollout == 1 and not filled.stale
        )
        if filled.stale:
            rollout = replace(rollout, old_logprobs=logprobs_when_sampled(rollout, number))
        if filled.stop:
            assert self.trainer is not None
            self.trainer.should_stop = True
        return rollout, filled.supply

    def _first_epoch(self, rollout: Rollout) -> Iterator[torch.Tensor]:
        """Yield the rows of the microbatches of a rollout's first epoch; the run may be stopped between two."""
        for step in torch.arange(len(rollout)).split(self.sizes.minibatch):
            for part in step.split(self.sizes.cut(rollout, step)):
                self.on_boundary(False)
                yield part

    def sample(self, numbers: Sequence[int]) -> Rollout:
        """Sample the responses to some prompts, by their number over the whole run; group by group, with rewards.

        The run goes through all prompts in a random order, then through all in another one, and so on.
        """
        total, size = self.train_prompts, self.group_size
        order = {turn: permutation(total, self.seed, turn) for turn in {number // total for number in numbers}}
        positions = [int(order[number // total][number % total]) for number in numbers]
        prompts = [self._encoded["train"][position] for position in positions]
        streams = [stream for number in numbers for stream in self.streams("train", number * size, size)]
        with self.agreed():
            return self.respond(prompts, positions, streams, self.sampling)

    def dealt(self, groups: torch.Tensor) -> torch.Tensor:
        """Return this rank's of all groups of a rollout, given in their order: an equal share of every optimizer step."""
        assert self.trainer is not None
        rank, ranks = data_parallel_rank(self.trainer), data_parallel_size(self.trainer)
        return groups.view(self.steps_per_epoch, -1)[:, rank::ranks].flatten()

    def reward(self, rollout: Rollout) -> Rollout:
        """Let callbacks change the rewards."""
        assert self.trainer is not None
        change_rewards(self.trainer, self.module, rollout)
        return rollout

    def keep(self, rollout: Rollout) -> torch.Tensor:
        """Return the groups that every callback keeps, by row: (B,) bool."""
        assert self.trainer is not None
        return kept_groups(self.trainer, self.module, rollout, self.group_size)

    def rows_of_groups(self, groups: torch.Tensor) -> torch.Tensor:
        """Return the row numbers of whole groups, for rows that stand group by group."""
        return (groups[:, None] * self.group_size + torch.arange(self.group_size)).flatten()

    def _rollout_callbacks(self) -> list[RolloutCallback]:
        assert self.trainer is not None
        return rollout_callbacks(self.trainer)


class RolloutEpoch:
    """The microbatches of one rollout: epochs × minibatches × microbatches.

    Args:
        data: knows the sizes and the seed.
        number: of the rollout in the run, from 0.
        rollout: this rank's rows, in the order of the first epoch.
        sizes: how an optimizer step is cut up.
    """

    def __init__(self, data: RolloutDataModule, number: int, rollout: Rollout, sizes: StepSizes) -> None:
        self.data = data
        self.number = number
        self.rollout = rollout
        self.sizes = sizes
        #: Whether every group was filled, on all ranks; only callbacks that drop groups leave some empty.
        self.full = rollout.sampled_in is None or all(
            from_every_rank(bool(groups_that_count(rollout, data.group_size).all()))
        )
        self._computed = torch.ones(len(rollout), dtype=torch.bool)
        self._metrics = rollout.metrics
        self._served = rollout
        # Old log-probabilities were scored in microbatches of all rows; in others the first ratio would not be 1 exactly.
        single = data.updates_per_rollout == 1 and rollout.old_logprobs is None and rollout.advantages is not None
        if single and not data.module.learns_from_zero_advantages:
            observed = worth_observing(rollout, any(from_every_rank(bool(teaches(rollout).any()))))
            self._computed = worth_computing(observed, sizes.accumulate)
            # Rows that only fill up passes have no gradient, and what is observed must not depend on how many of them there are.
            mask = rollout.response_mask & observed.to(rollout.response_mask.device)[:, None]
            self._served = replace(rollout, response_mask=mask)
            share = {"rollout/forwarded_fraction": Mean(int(observed.sum()), len(observed))}
            self._metrics = rollout.metrics | metrics_of_all_ranks(share)

    def microbatches(self, start: int) -> Iterator[Microbatch]:
        """Yield the microbatches from number `start` on."""
        data = self.data
        assert data.trainer is not None
        steps = [
            rows for epoch in range(data.epochs_per_rollout) for rows in self._order(epoch).split(self.sizes.minibatch)
        ]
        masks = [(self.rollout.response_mask[rows], self.rollout.group_ids[rows]) for rows in steps]
        totals = step_totals(data.trainer, masks)
        idle = [not float(counts.tokens) for counts in totals]
        weights = step_weights(data.trainer, masks, data.module.reduction, data.sampling.max_new_tokens, totals)
        first, skip = divmod(start, self.sizes.accumulate)
        for step in range(first, len(steps)):
            computed = self._computed[steps[step]]
            chosen = steps[step][computed]
            sizes = self.sizes.cut(self.rollout, chosen)
            parts = list(zip(chosen.split(sizes), weights[step][computed].split(sizes), strict=True))
            for part, (rows, row_weights) in list(enumerate(parts))[skip:]:
                microbatch = self._served.microbatch(
                    rows,
                    row_weights,
                    ends_step=part + 1 == len(parts),
                    idle=idle[step],
                    metrics=self._metrics if step == part == 0 else {},
                )
                # Where the policy itself samples, its own numbers have nothing to add to the trainer's.
                yield microbatch if data.generator.samples_from_copy else replace(microbatch, rollout_logprobs=None)
            skip = 0

    def _order(self, epoch: int) -> torch.Tensor:
        """Return all row numbers in the order of an epoch, groups whole.

        Step by step, every group has a place, and it changes its step but not its place: so a rank keeps its own groups,
        and the steps are made of the same ones on any number of ranks.
        """
        data = self.data
        assert data.trainer is not None
        steps, ranks = data.steps_per_epoch, data_parallel_size(data.trainer)
        groups = torch.arange(len(self.rollout) // data.group_size).view(steps, -1)
        if epoch and self.full:
            places = range(data_parallel_rank(data.trainer), groups.shape[1] * ranks, ranks)
            order = torch.stack([permutation(steps, data.seed, self.number, epoch, place) for place in places], 1)
            groups = groups.gather(0, order)
        elif epoch:  # what counts is spread evenly over the steps: leave them as they are made up
            groups = groups[permutation(steps, data.seed, self.number, epoch)]
        return data.rows_of_groups(groups.flatten())

    def state_dict(self) -> dict[str, Any]:
        """Return the rollout as it is trained on, on the CPU: ranks have no other device in common."""
        return self.rollout.to("cpu").state_dict()

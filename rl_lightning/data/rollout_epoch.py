"""Step 8 of a rollout: what it is trained on, microbatch by microbatch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rl_lightning.data.refill import groups_that_count
from rl_lightning.data.steps import Layout, StepSizes, step_totals, step_weights
from rl_lightning.functional.masking import Total
from rl_lightning.learner import PolicyLearner
from rl_lightning.measures import Mean
from rl_lightning.strategies import from_every_rank, metrics_of_all_ranks
from rl_lightning.types import Microbatch, Rollout


@dataclass
class RolloutEpoch:
    """The microbatches of one rollout: epochs × optimizer steps × microbatches.

        rows          0 1 2 3 | 4 5 6 7    this rank's, in two optimizer steps of `sizes.minibatch` = 4, G = 1
        microbatches  01 | 23 | 45 | 67    `sizes.accumulate` = 2 to each step
        later epoch   4 1 6 3 | 0 5 2 7    each column in another order: `Layout.epoch_order`

    Args:
        layout: the groups of the rollout.
        sizes: how an optimizer step is cut into microbatches.
        module: the algorithm.
        total: adds sums up over the ranks.
        number: of the rollout in the run, from 0.
        rollout: this rank's rows, in the order of the first epoch.
        longest: L_max, the cap on a response's length in tokens.
        from_copy: a copy of the policy was sampled, so its log-probabilities are not quite the trainer's.
    """

    layout: Layout
    sizes: StepSizes
    module: PolicyLearner
    total: Total
    number: int
    rollout: Rollout
    longest: int
    from_copy: bool

    def __post_init__(self) -> None:
        rollout, layout, module = self.rollout, self.layout, self.module
        #: Whether every group was filled, on all ranks; only callbacks that drop groups leave some empty.
        self.full = rollout.sampled_in is None or all(
            from_every_rank(bool(groups_that_count(rollout, layout.group_size).all()))
        )
        self._computed = torch.ones(len(rollout), dtype=torch.bool)
        self._metrics = rollout.metrics
        self._served = rollout
        # Old log-probabilities were scored in microbatches of all rows; in others the first ratio would not be 1 exactly.
        single = layout.updates == 1 and rollout.old_logprobs is None and rollout.advantages is not None
        if single and not module.learns_from_zero_advantages:
            self._leave_out()

    def _leave_out(self) -> None:
        """Leave out the rows that have no gradient. They still count in every mean of the loss."""
        rollout = self.rollout
        observed = worth_observing(rollout, any(from_every_rank(bool(teaches(rollout).any()))))
        self._computed = worth_computing(observed, self.sizes.accumulate)
        # Rows that only fill up passes have no gradient, and what is observed must not depend on how many of them there are.
        mask = rollout.response_mask & observed.to(rollout.response_mask.device)[:, None]
        self._served = replace(rollout, response_mask=mask)
        share = {"rollout/forwarded_fraction": Mean(int(observed.sum()), len(observed))}
        self._metrics = rollout.metrics | metrics_of_all_ranks(share)

    def microbatches(self, start: int) -> Iterator[Microbatch]:
        """Yield the microbatches from number `start` on."""
        steps = [
            rows
            for epoch in range(self.layout.epochs)
            for rows in self.layout.epoch_order(self.number, epoch, self.full).split(self.sizes.minibatch)
        ]
        # Weights are those of whole optimizer steps, over all ranks: any split into microbatches has the same gradient.
        masks = [(self.rollout.response_mask[rows], self.rollout.group_ids[rows]) for rows in steps]
        totals = step_totals(masks, self.total)
        idle = [not float(counts.tokens) for counts in totals]
        weights = step_weights(masks, totals, self.module.reduction, self.longest)
        first, skip = divmod(start, self.sizes.accumulate)
        for step in range(first, len(steps)):
            computed = self._computed[steps[step]]
            chosen = steps[step][computed]
            sizes = self.sizes.cut(self.rollout, chosen)
            parts = list(zip(chosen.split(sizes), weights[step][computed].split(sizes), strict=True))
            for part, (rows, row_weights) in list(enumerate(parts))[skip:]:
                microbatch = self._served.microbatch(rows, row_weights)
                yield replace(
                    microbatch,
                    # Where the policy itself is sampled, its own numbers have nothing to add to the trainer's.
                    rollout_logprobs=microbatch.rollout_logprobs if self.from_copy else None,
                    ends_step=part + 1 == len(parts),
                    idle=idle[step],
                    metrics=self._metrics if step == part == 0 else {},
                )
            skip = 0

    def state_dict(self) -> dict[str, object]:
        """Return the rollout as it is trained on, on the CPU: ranks have no other device in common."""
        return self.rollout.to("cpu").state_dict()


def teaches(rollout: Rollout) -> Tensor:
    """Return which rows have a counted token whose advantage is not 0, (B,) bool; without advantages, a counted token."""
    mask = rollout.response_mask
    return (mask if rollout.advantages is None else mask & (rollout.advantages != 0)).any(1)


def worth_observing(rollout: Rollout, anything_teaches: bool) -> Tensor:
    """Return the rows on which a policy is observed, (B,) bool on the CPU: those that teach something, or, where none does on any
    rank, the first that counts of each group. The set does not depend on the number of ranks."""
    if anything_teaches:
        return teaches(rollout).cpu()
    counted = rollout.response_mask.any(1).cpu()
    groups = rollout.group_ids.cpu()
    earlier = (groups[:, None] == groups) & counted & (torch.arange(len(groups)) < torch.arange(len(groups))[:, None])
    return counted & ~earlier.any(1)


def worth_computing(observed: Tensor, least: int) -> Tensor:
    """Return the rows that are observed, and, where these are fewer than `least`, further ones, (B,) bool."""
    order = observed.long().argsort(descending=True, stable=True)
    return torch.zeros_like(observed).index_fill(0, order[: max(least, int(observed.sum()))], True)

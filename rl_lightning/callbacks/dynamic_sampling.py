"""Dynamic sampling: train only on groups with both right and wrong answers, and sample until the rollout is full."""

from __future__ import annotations

from typing import Literal

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from rl_lightning.errors import UserError
from rl_lightning.hooks import Refill, RolloutCallback
from rl_lightning.strategies import data_parallel_size
from rl_lightning.types import Rollout


class DynamicSampling(RolloutCallback):
    """Drop groups whose answers are all right or all wrong, and sample more prompts until the rollout is full.

    Right and wrong answers are counted, not the spread of rewards: a group of right answers of which some lost reward for their
    length teaches nothing about the task. Answers whose reward failed do not count. Of a prompt that is solved with probability
    p, a group of G is kept with probability 1 − p^G − (1 − p)^G, so prompts of medium difficulty remain.

    Kept groups beyond the size of a rollout can wait for the next one. They are off policy there, and their ratio is taken to
    the policy that sampled them.

    Logs `rollout/chunks`; `rollout/kept_fraction`, kept / sampled groups; `rollout/surplus`, the number of groups that wait;
    `rollout/stale_fraction`, the share of the rollout's groups that have waited. Reward, length, correctness and
    `rollout/all_right_fraction` are over all sampled groups, also the dropped ones. A rollout that was filled by waiting groups
    alone logs none of these.

    Args:
        max_chunks: prompts are sampled at most this many times for one rollout.
        prompts_per_chunk: prompts sampled at a time, over all ranks; `prompts_per_rollout` if null.
        surplus: kept groups beyond the rollout wait for the next one (`keep`) or are dropped (`drop`).
        on_exhaustion: what happens if the rollout is not full after `max_chunks`, or after every training prompt was sampled
            once for it. `smaller`: train on the groups that there are, spread over the optimizer steps. `skip`: drop the
            rollout. `stop`: drop it and end the run. An optimizer step without a group does not change the policy.

    Raises:
        UserError: for a size below 1.

    Source: DAPO (arXiv 2503.14476) Eq. 11. The paper samples until the batch is full. verl raises an error after 10 chunks.
    """

    refill: Refill

    def __init__(
        self,
        max_chunks: int = 10,
        prompts_per_chunk: int | None = None,
        surplus: Literal["keep", "drop"] = "keep",
        on_exhaustion: Literal["smaller", "skip", "stop"] = "smaller",
    ) -> None:
        for name, value in (("max_chunks", max_chunks), ("prompts_per_chunk", prompts_per_chunk)):
            if value is not None and value < 1:
                raise UserError(f"DynamicSampling: {name} must be at least 1, not {value}")
        self.refill = Refill(max_chunks, prompts_per_chunk, surplus, on_exhaustion)

    def check_settings(self, trainer: Trainer) -> None:
        """Refuse a group size of 1, chunks that the ranks cannot share, and chunks that could never fill a rollout."""
        group_size: int = trainer.datamodule.group_size  # type: ignore[attr-defined]
        prompts: int = trainer.datamodule.prompts_per_rollout  # type: ignore[attr-defined]
        ranks, refill = data_parallel_size(trainer), self.refill
        chunk = refill.prompts_per_chunk or prompts
        if group_size < 2:
            raise UserError(
                f"DynamicSampling keeps groups with both right and wrong answers: group_size={group_size} must be at "
                "least 2"
            )
        if chunk % ranks:
            raise UserError(f"DynamicSampling: prompts_per_chunk={chunk} must be a multiple of the {ranks} ranks")
        if chunk * refill.max_chunks < prompts:
            raise UserError(
                f"DynamicSampling: max_chunks × prompts_per_chunk = {chunk * refill.max_chunks} can never fill a rollout: it must "
                f"be at least prompts_per_rollout={prompts}"
            )

    def keep_groups(self, trainer: Trainer, module: LightningModule, rollout: Rollout) -> Tensor:
        """Return the rows of groups with at least one right and one wrong answer: (B,) bool."""
        scored, correct = rollout.votes()
        return (correct > 0) & (correct < scored)

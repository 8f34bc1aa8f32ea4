"""Train only on groups that have both correct and wrong answers, and sample until there are enough of them."""

from __future__ import annotations

from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from rl_lightning.errors import UserError
from rl_lightning.hooks import Refill, RolloutCallback
from rl_lightning.strategies import data_parallel_size
from rl_lightning.types import Rollout


class DynamicSampling(RolloutCallback):
    """Drop the groups whose answers are all right or all wrong, and sample more prompts until the rollout is full.

    It counts correct answers among those that have a reward, never the spread of rewards: an all-correct group in which
    some answers lost reward for their length has nothing to teach about the task. The prompts that remain are those of
    medium difficulty: of a prompt that is solved with probability p, a share 1 − p^G − (1 − p)^G of the groups is kept.

    Groups that wait for the next rollout are off policy there; their ratio is to the policy that sampled them.

    Logged: `rollout/chunks`; `rollout/kept_fraction` of the groups sampled; `rollout/surplus`, groups that wait;
    `rollout/stale_fraction` of the rollout's groups that have waited. Reward, length, correctness and
    `rollout/all_right_fraction` are over everything sampled, before anything was dropped; a rollout that was full without
    sampling logs none of them.

    Args:
        max_chunks: times that prompts are sampled for one rollout, at most.
        prompts_per_chunk: prompts sampled at a time, over all ranks; as many as the rollout has if null.
        surplus: kept groups beyond the rollout wait for the next one (`keep`) or are lost (`drop`).
        on_exhaustion: what happens when the chunks are used up, or every prompt had its turn in this rollout. `smaller`:
            the optimizer steps share what there is. `skip`: the rollout is thrown away. `stop`: so it is, and the run
            ends. An optimizer step without a group leaves the policy as it is.

    Source: DAPO (arXiv 2503.14476) Eq. 11. The paper keeps sampling until the batch is full; verl gives up after 10
    chunks, by an error.
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
        """Refuse sizes with which no rollout could be filled."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        ranks, refill = data_parallel_size(trainer), self.refill
        chunk = refill.prompts_per_chunk or data.prompts_per_rollout
        if data.group_size < 2:
            raise UserError(
                f"DynamicSampling keeps groups with both right and wrong answers: group_size={data.group_size} must be at "
                "least 2"
            )
        if chunk % ranks:
            raise UserError(f"DynamicSampling: prompts_per_chunk={chunk} must be a multiple of the {ranks} ranks")
        if chunk * refill.max_chunks < data.prompts_per_rollout:
            raise UserError(
                f"DynamicSampling: max_chunks × prompts_per_chunk = {chunk * refill.max_chunks} can never fill a rollout: it must "
                f"be at least prompts_per_rollout={data.prompts_per_rollout}"
            )

    def keep_groups(self, trainer: Trainer, module: LightningModule, rollout: Rollout) -> Tensor:
        """Return the rows of groups with at least one right and one wrong answer."""
        scored, correct = rollout.votes()
        return (correct > 0) & (correct < scored)

"""Offline data for supervised fine-tuning: prompts with a demonstrated response."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import torch

from rl_lightning.data.loader import permutation, plan_steps, refuse_partial_epochs, step_weights
from rl_lightning.data.prompts import encode_demonstrations
from rl_lightning.data.sampling import SamplingDataModule
from rl_lightning.errors import UserError
from rl_lightning.hooks import RolloutCallback
from rl_lightning.strategies import data_parallel_rank, data_parallel_size
from rl_lightning.types import Minibatch, Rows, pad_left, pad_right

log = logging.getLogger(__name__)


class DemonstrationDataModule(SamplingDataModule):
    """Demonstrations to imitate; one Lightning epoch goes through all of them in a new random order.

    Examples that do not fill the last optimizer step of an epoch wait for the next one's order.

    Args:
        batch_size: demonstrations in an optimizer step, over all ranks.
        microbatch_size: demonstrations in one forward pass of one device; as many as the step has there if null.
        **sampling_options: prompts (with demonstrations), and what serves evaluation, which samples the policy as for the
            other algorithms: see `SamplingDataModule`.
    """

    serves = ("demonstrations",)

    def __init__(
        self,
        batch_size: int = 64,
        microbatch_size: int | None = None,
        **sampling_options: Any,
    ) -> None:
        super().__init__(**sampling_options)
        self.batch_size = batch_size
        self.microbatch_size = microbatch_size

    def describe(self) -> dict[str, str]:
        """Return the lines of the run card that speak of the data."""
        tokens = sum(len(response) for response in self._responses) / len(self._responses)
        return super().describe() | {
            "update": f"{self.batch_size} demonstrations (about {self.batch_size * tokens:,.0f} tokens) in "
            f"{self.sizes.accumulate} microbatch(es), {self.steps_per_epoch():,} an epoch",
        }

    def setup(self, stage: str) -> None:
        """Check sizes, then read and encode the demonstrations."""
        assert self.trainer is not None
        if stage == "fit":
            self.sizes = plan_steps(self.trainer, self.batch_size, self.microbatch_size)
            self._refuse_rollout_shaping()
        super().setup(stage)
        if stage != "fit":
            return
        files = self.module.policy_files
        encoded = self._encoded["train"]
        self._responses = encode_demonstrations(encoded, files.tokenizer, files.tokenizer.eos_token_id)
        self._check_lengths(files.context_length)
        if len(encoded) < self.batch_size:
            raise UserError(f"batch_size={self.batch_size} but there are only {len(encoded)} demonstrations")
        refuse_partial_epochs(self.trainer, self.microbatches_per_epoch())
        self._longest = max(len(response) for response in self._responses)
        left = len(encoded) % self.batch_size
        if left:
            log.info("%d of %d demonstrations wait for the next epoch in every epoch", left, len(encoded))

    def _refuse_rollout_shaping(self) -> None:
        """Refuse callbacks that would change rollouts: there are none here, so they would do nothing in silence."""
        assert self.trainer is not None
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            stages = ("on_rollout_rewards", "on_rollout_advantages")
            if isinstance(callback, RolloutCallback) and any(
                getattr(type(callback), stage) is not getattr(RolloutCallback, stage) for stage in stages
            ):
                raise UserError(
                    f"{type(callback).__name__} acts on rollouts, and demonstrations are none: take it out of the callbacks"
                )

    def _check_lengths(self, context_length: int | None) -> None:
        """Refuse demonstrations that the policy cannot read to their end."""
        if context_length is None:
            return
        pairs = zip(self._encoded["train"], self._responses, strict=True)
        lengths = [(prompt.example.location, len(prompt.input_ids) + len(response)) for prompt, response in pairs]
        long = [
            f"{place}: prompt and response have {length} tokens" for place, length in lengths if length > context_length
        ]
        if long:
            shown = "\n  ".join(long[:20]) + (f"\n  ... and {len(long) - 20} more" if len(long) > 20 else "")
            raise UserError(f"demonstrations are longer than the policy's context of {context_length}:\n  {shown}")

    def steps_per_epoch(self) -> int:
        """Return the number of optimizer steps in an epoch."""
        return len(self._encoded["train"]) // self.batch_size

    def microbatches_per_epoch(self) -> int:
        """Return the number of forward passes in an epoch on each rank."""
        return self.steps_per_epoch() * self.sizes.accumulate

    def epoch(self, number: int, state: dict[str, Any] | None) -> DemonstrationEpoch:
        """Return the demonstrations in the order of epoch `number`; it needs no other state."""
        return DemonstrationEpoch(self, number)

    def rows(self, positions: list[int]) -> Rows:
        """Stack some demonstrations, prompts padded left and responses right."""
        pad_id = self.module.policy_files.tokenizer.pad_token_id
        prompt_ids, prompt_mask = pad_left([self._encoded["train"][p].input_ids for p in positions], pad_id)
        response_ids, response_mask = pad_right([self._responses[p] for p in positions], pad_id)
        return Rows(
            input_ids=torch.cat([prompt_ids, response_ids], 1),
            attention_mask=torch.cat([prompt_mask, response_mask], 1),
            response_mask=response_mask,
            group_ids=torch.tensor(positions),
            temperature=1.0,
        )


class DemonstrationEpoch:
    """One pass over the demonstrations.

    Args:
        data: holds them.
        number: of the epoch, from 0; its order depends on nothing else.
    """

    def __init__(self, data: DemonstrationDataModule, number: int) -> None:
        self.data = data
        assert data.trainer is not None
        ranks, rank = data_parallel_size(data.trainer), data_parallel_rank(data.trainer)
        order = permutation(len(data._encoded["train"]), data.seed, number)
        steps = order[: data.steps_per_epoch() * data.batch_size].view(-1, data.batch_size)
        self._steps = steps[:, rank * data.batch_size // ranks : (rank + 1) * data.batch_size // ranks].tolist()

    def microbatches(self, start: int) -> Iterator[Minibatch]:
        """Yield the microbatches from number `start` on."""
        data, size = self.data, self.data.sizes.microbatch
        assert data.trainer is not None
        first, skip = divmod(start, data.sizes.accumulate)
        for positions in self._steps[first:]:
            whole = data.rows(positions)
            (weights,) = step_weights(
                data.trainer, [(whole.response_mask, whole.group_ids)], data.module.reduction, data._longest
            )
            for part in range(skip, data.sizes.accumulate):
                cut = slice(part * size, (part + 1) * size)
                rows = data.rows(positions[cut])
                yield Minibatch(
                    **vars(rows),
                    weights=weights[cut, : rows.response_length],
                    ends_step=part + 1 == data.sizes.accumulate,
                )
            skip = 0

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: an epoch follows from its number."""
        return {}

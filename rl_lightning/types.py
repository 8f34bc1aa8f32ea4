"""What travels through the house: dataclasses of tensors.

B rows (prompts × group), P prompt columns (padded left), R response columns (padded right), T = P + R.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

RowsT = TypeVar("RowsT", bound="Rows")


@dataclass
class Rows:
    """A table of tensors with one row a response: the ids and masks that every stage needs.

    Args:
        input_ids: (B, T) long; prompt and response side by side.
        attention_mask: (B, T) bool; True on real tokens.
        response_mask: (B, R) bool; True on a generated token that counts, the stop token included.
        group_ids: (B,) long; rows that answer the same prompt share a number.
        temperature: τ that responses are, or were, sampled at; log-probabilities are taken at it.
    """

    input_ids: Tensor
    attention_mask: Tensor
    response_mask: Tensor
    group_ids: Tensor
    temperature: float

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def response_length(self) -> int:
        """R, the width of the response columns."""
        return self.response_mask.shape[1]

    @property
    def response_ids(self) -> Tensor:
        """(B, R) long: the response columns of `input_ids`."""
        return self.input_ids[:, -self.response_length :]

    @property
    def response_attention(self) -> Tensor:
        """(B, R) bool: the real response tokens, whether they count or not."""
        return self.attention_mask[:, -self.response_length :]

    @property
    def lengths(self) -> Tensor:
        """(B,) long: |y| in tokens, whether they count or not."""
        return self.response_attention.sum(1)

    def select(self: RowsT, rows: Tensor) -> RowsT:
        """Return the given rows, in the given order."""
        return self._map(lambda value: value[rows])

    def to(self: RowsT, device: torch.device | str, **kwargs: Any) -> RowsT:
        """Return the same table on a device."""
        return self._map(lambda value: value.to(device, **kwargs))

    def _map(self: RowsT, change: Any) -> RowsT:
        """Apply a change to every tensor; lists, which have a row each, follow through a tensor of row numbers."""
        changed: dict[str, Any] = {}
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Tensor):
                changed[item.name] = change(value)
            elif isinstance(value, dict):
                changed[item.name] = {k: change(v) if isinstance(v, Tensor) else v for k, v in value.items()}
            elif isinstance(value, list):
                order = change(torch.arange(len(value))).tolist()
                changed[item.name] = [value[row] for row in order]
        return dataclasses.replace(self, **changed)


@dataclass
class Rollout(Rows):
    """Responses of the policy to a number of prompts, and everything learned about them.

    Args:
        prompt_index: (B,) long; which prompt of the split a row answers.
        truncated: (B,) bool; hit the cap on new tokens without a stop token.
        rollout_logprobs: (B, R) float; log-probabilities in nats as the sampler reported them.
        prompts, responses, answers: B strings each (an answer may be None), as rewards and tables show them.
        raw_rewards, rewards: (B,) float, before and after shaping; NaN where a reward failed.
        correct: (B,) bool; the first reward listed reached its threshold.
        reward_components: reward name → (B,) float, unweighted.
        old_logprobs: (B, R); of the policy at rollout time, as the trainer computes them. Absent when the rollout
            serves a single update: there they equal the current ones.
        ref_logprobs: (B, R); of the frozen reference, if the algorithm has one.
        advantages: (B, R).
        metrics: scalars about the whole rollout, for the loggers.
    """

    prompt_index: Tensor
    truncated: Tensor
    rollout_logprobs: Tensor
    prompts: list[str]
    responses: list[str]
    answers: list[str | None]
    raw_rewards: Tensor
    rewards: Tensor
    correct: Tensor
    reward_components: dict[str, Tensor] = field(default_factory=dict)
    old_logprobs: Tensor | None = None
    ref_logprobs: Tensor | None = None
    advantages: Tensor | None = None
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def scored(self) -> Tensor:
        """(B,) bool: the reward did not fail."""
        return ~self.raw_rewards.isnan()

    def microbatch(self, rows: Tensor, weights: Tensor | None = None, **extra: Any) -> Minibatch:
        """Cut some rows out for one forward pass, without the columns that are padding in all of them.

        Args:
            rows: (b,) long row numbers.
            weights: (b, R) weights of their tokens in the loss; absent when the pass only scores.
            extra: further fields of `Minibatch`.
        """
        part = self.select(rows)
        prompt_columns = part.attention_mask[:, : -part.response_length].any(0)
        first = int(prompt_columns.long().argmax()) if bool(prompt_columns.any()) else 0
        cut = int(part.response_attention.any(0).sum())
        drop = part.response_length - cut

        def responses(value: Tensor | None) -> Tensor | None:
            return None if value is None else value[:, :cut]

        end = part.input_ids.shape[1] - drop
        return Minibatch(
            input_ids=part.input_ids[:, first:end],
            attention_mask=part.attention_mask[:, first:end],
            response_mask=part.response_mask[:, :cut],
            group_ids=part.group_ids,
            temperature=part.temperature,
            weights=responses(weights),
            rollout_logprobs=responses(part.rollout_logprobs),
            old_logprobs=responses(part.old_logprobs),
            ref_logprobs=responses(part.ref_logprobs),
            advantages=responses(part.advantages),
            **extra,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return plain tensors, numbers, strings and containers of them, as a checkpoint may hold."""
        return {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Rollout:
        """Undo `state_dict`."""
        return cls(**state)


@dataclass
class Minibatch(Rows):
    """One microbatch of an optimizer step, with the weight of each of its tokens in that step's loss.

    Args:
        weights: (B, R) float; see `rl_lightning.functional.weights`.
        rollout_logprobs, old_logprobs, ref_logprobs, advantages: (B, R), as in `Rollout`; absent where an algorithm
            has no use for them.
        ends_step: True on the last microbatch of an optimizer step.
        metrics: scalars to log with this step.
    """

    weights: Tensor | None = None
    rollout_logprobs: Tensor | None = None
    old_logprobs: Tensor | None = None
    ref_logprobs: Tensor | None = None
    advantages: Tensor | None = None
    ends_step: bool = True
    metrics: dict[str, float] = field(default_factory=dict)


class Sealed:
    """A batch on its way from a loader to its step, out of reach of Lightning's precision plugin.

    Under `bf16-true` the plugin rounds every floating-point tensor that it finds in a batch to bfloat16, also
    log-probabilities and weights, whose third digit matters. The DataModule opens the seal when it moves the batch.
    """

    def __init__(self, batch: Rows) -> None:
        self.batch = batch


def pad_left(rows: Sequence[Sequence[int]], fill: int) -> tuple[Tensor, Tensor]:
    """Stack token ids of different lengths, aligned at the right.

    Returns:
        ids (B, L) long, and the mask of real tokens (B, L) bool.
    """
    width = max(len(row) for row in rows)
    ids = torch.tensor([[fill] * (width - len(row)) + list(row) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    return ids, torch.arange(width) >= (width - lengths).unsqueeze(1)


def pad_right(rows: Sequence[Sequence[int]], fill: int) -> tuple[Tensor, Tensor]:
    """Stack token ids of different lengths, aligned at the left.

    Returns:
        ids (B, L) long, and the mask of real tokens (B, L) bool.
    """
    width = max(len(row) for row in rows)
    ids = torch.tensor([list(row) + [fill] * (width - len(row)) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    return ids, torch.arange(width) < lengths.unsqueeze(1)

"""What travels through the house: dataclasses of tensors.

B rows (prompts × group), P prompt columns (padded left), R response columns (padded right), T = P + R.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from rl_lightning.functional import less_divergence
from rl_lightning.text import transcript
from rl_lightning.travel import table_carried, with_tensors

RowsT = TypeVar("RowsT", bound="Rows")


@dataclass
class Rows:
    """A table of tensors with one row a response: the ids and masks that every stage needs.

    Args:
        input_ids: (B, T) long; prompt and response side by side.
        attention_mask: (B, T) bool; True on real tokens.
        response_mask: (B, R) bool; True on a generated token that counts, the stop token included.
        group_ids: (B,) long; rows that answer the same prompt share a number.
        temperature: τ that log-probabilities are taken at: the one that responses were sampled at in a rollout, 1 for stored
            text unless asked for otherwise.
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

    @property
    def prompt_lengths(self) -> Tensor:
        """(B,) long: |x| in tokens."""
        return self.attention_mask.sum(1) - self.lengths

    def unpadded_ids(self) -> list[list[int]]:
        """Return the real response tokens of each row."""
        return [ids[:length] for ids, length in zip(self.response_ids.tolist(), self.lengths.tolist(), strict=True)]

    def select(self: RowsT, rows: Tensor) -> RowsT:
        """Return a table of some rows, (n,) long row numbers, in the given order; lists and dictionaries follow, metrics do not."""
        table, order = with_tensors(self, lambda value: value[rows]), torch.arange(len(self))[rows].tolist()
        for name, value in vars(self).items():
            if isinstance(value, list):
                setattr(table, name, [value[row] for row in order])
        return table

    def to(self: RowsT, device: torch.device | str) -> RowsT:
        """Return the same table on a device, moved in one copy; see `rl_lightning.travel`."""
        return table_carried(self, device)


@dataclass
class Rollout(Rows):
    """Responses of the policy to a number of prompts, and everything learned about them.

    Args:
        prompt_index: (B,) long; which prompt of the split a row answers.
        truncated: (B,) bool; hit the cap on new tokens without a stop token.
        caps: (B,) long; cap on the new tokens of each row.
        rollout_logprobs: (B, R) float; log-probabilities in nats as the sampler reported them.
        prompts, responses, answers: B each, as rewards and tables show them; an answer may be None, a list or a dict.
        raw_rewards, rewards: (B,) float, before and after shaping; NaN where a reward failed. A divergence from the reference
            is never taken off them: see `penalised_rewards`.
        correct: (B,) bool; the first reward listed that applies reached its threshold.
        reward_components: reward name → (B,) float, unweighted; NaN where a reward failed or does not apply.
        notes: for each row, reward name → what the reward noted, for tables of samples.
        old_logprobs: (B, R); of the policy at rollout time, as the trainer computes them. Absent when the rollout
            serves a single update: there they equal the current ones.
        ref_logprobs: (B, R); of the frozen reference, if the algorithm has one.
        turns: (B, R) long, in environments: k on the tokens of the policy's k-th turn, from 1; 0 on what it heard, and on padding.
        turn_rewards: (B, R); the part of `rewards` that an environment gave, times its weight, each at the last token of its turn.
        transcripts: B, where there are turns: all of them and what was said between them, as messages; a response is the last turn.
        token_rewards: (B, R); r(x, y≤t) where a callback gives a reward to each token. Such a reward takes the place of
            `rewards` in algorithms that credit single tokens.
        kl_penalties: (B, R); β times the estimated divergence of each token, where it acts in the reward.
        values: (B, R); of the critic before each token, if the algorithm has one.
        bootstrap_values: (B,); of the critic after the last token.
        advantages, returns: (B, R).
        sampled_in: (B,) long; number of the rollout that a row was sampled for, where rows may have waited since.
        metrics: scalars about the whole rollout, for the loggers.
    """

    prompt_index: Tensor
    truncated: Tensor
    rollout_logprobs: Tensor
    prompts: list[str]
    responses: list[str]
    answers: list[object]
    raw_rewards: Tensor
    rewards: Tensor
    correct: Tensor
    reward_components: dict[str, Tensor] = field(default_factory=dict)
    notes: list[dict[str, dict[str, object]]] | None = None
    caps: Tensor | None = None
    old_logprobs: Tensor | None = None
    ref_logprobs: Tensor | None = None
    turns: Tensor | None = None
    turn_rewards: Tensor | None = None
    transcripts: list[list[dict[str, Any]]] | None = None
    token_rewards: Tensor | None = None
    kl_penalties: Tensor | None = None
    values: Tensor | None = None
    bootstrap_values: Tensor | None = None
    advantages: Tensor | None = None
    returns: Tensor | None = None
    sampled_in: Tensor | None = None
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def policy_attention(self) -> Tensor:
        """(B, R) bool: the tokens that the policy wrote, whether they count or not."""
        return self.response_attention if self.turns is None else self.turns > 0

    @property
    def policy_lengths(self) -> Tensor:
        """(B,) long: tokens that the policy wrote, whether they count or not."""
        return self.policy_attention.sum(1)

    def text(self, row: int) -> str:
        """Return a response for people to read, with all that was said where it has several turns."""
        return self.responses[row] if self.transcripts is None else transcript(self.transcripts[row])

    @property
    def scored(self) -> Tensor:
        """(B,) bool: the reward did not fail."""
        return ~self.raw_rewards.isnan()

    @property
    def penalised_rewards(self) -> Tensor:
        """(B,) float: what responses are compared by, rewards less the divergence where it acts in the reward."""
        return self.less_divergence(self.rewards)

    def less_divergence(self, rewards: Tensor) -> Tensor:
        """Return rewards, one a response (B,) or a token (B, R), less the divergence. Nothing else takes it off."""
        return less_divergence(rewards, self.kl_penalties)

    def votes(self) -> tuple[Tensor, Tensor]:
        """Return how many responses of a row's group have a reward, and how many of those are correct: (B,) long each."""
        _, member = self.group_ids.unique(return_inverse=True)
        none = torch.zeros_like(member)
        scored = none.index_add(0, member, self.scored.long())
        correct = none.index_add(0, member, (self.correct & self.scored).long())
        return scored[member], correct[member]

    def microbatch(self, rows: Tensor, weights: Tensor | None = None) -> Microbatch:
        """Cut some rows out for one forward pass, without the columns that are padding in all of them.

            a rollout                       rows [0, 2], P = 2, R = 3
            . . p p | r r r . .  row 0      p p | r r r
            p p p p | r r r r r  row 1
            . . . p | r . . . .  row 2      . p | r . .

        Args:
            rows: (b,) long row numbers.
            weights: (b, R) weights of their tokens in the loss; absent when the pass only scores.
        """
        part = self.select(rows)
        prompt_columns = part.attention_mask[:, : -part.response_length].any(0)
        first = int(prompt_columns.long().argmax()) if bool(prompt_columns.any()) else 0
        cut = int(part.response_attention.any(0).sum())
        drop = part.response_length - cut

        def responses(value: Tensor | None) -> Tensor | None:
            return None if value is None else value[:, :cut]

        end = part.input_ids.shape[1] - drop
        return Microbatch(
            input_ids=part.input_ids[:, first:end],
            attention_mask=part.attention_mask[:, first:end],
            response_mask=part.response_mask[:, :cut],
            group_ids=part.group_ids,
            temperature=part.temperature,
            weights=responses(weights),
            rollout_logprobs=responses(part.rollout_logprobs),
            old_logprobs=responses(part.old_logprobs),
            ref_logprobs=responses(part.ref_logprobs),
            values=responses(part.values),
            advantages=responses(part.advantages),
            returns=responses(part.returns),
        )

    def state_dict(self) -> dict[str, object]:
        """Return plain tensors, numbers, strings and containers of them, as a checkpoint may hold."""
        return {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Rollout:
        """Return a rollout from what `state_dict` returned, of this process or another."""
        return cls(**state)


@dataclass
class Microbatch(Rows):
    """One microbatch of an optimizer step, with the weight of each of its tokens in that step's loss.

    Args:
        weights: (B, R) float; see `rl_lightning.functional.weights`.
        rollout_logprobs, old_logprobs, ref_logprobs, values, advantages, returns: (B, R), as in `Rollout`; absent where
            an algorithm has no use for them. In training, `rollout_logprobs` are there only if another sampler than the
            policy itself reported them.
        ends_step: True on the last microbatch of an optimizer step.
        idle: no token of the optimizer step counts, in none of its microbatches and on no rank: the step must not move
            the policy, for an optimizer with momentum moves without a gradient.
        metrics: scalars to log with this step.
    """

    weights: Tensor | None = None
    rollout_logprobs: Tensor | None = None
    old_logprobs: Tensor | None = None
    ref_logprobs: Tensor | None = None
    values: Tensor | None = None
    advantages: Tensor | None = None
    returns: Tensor | None = None
    ends_step: bool = True
    idle: bool = False
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass
class PreferenceBatch(Microbatch):
    """One microbatch of preference pairs: row 2i is what was chosen, row 2i + 1 what was rejected, of the same prompt.

    Args:
        margins: (B/2,) float; how much better the chosen response is, in units of reward, where that is known.
    """

    margins: Tensor | None = None

    @staticmethod
    def chosen(rows: Tensor) -> Tensor:
        """Return what belongs to the chosen responses, of something with a row a response."""
        return rows[0::2]

    @staticmethod
    def rejected(rows: Tensor) -> Tensor:
        """Return what belongs to the rejected responses, of something with a row a response."""
        return rows[1::2]

    def per_token(self, pairs: Tensor) -> Tensor:
        """Give every token of a pair's two rows the pair's number, (B/2,) → (B, R): under `seq_mean` weights, which sum to 1/B
        over a row, the sum over tokens is then the mean over pairs."""
        return pairs.repeat_interleave(2).unsqueeze(1).expand_as(self.response_mask)


class Sealed:
    """A batch on its way from a loader to its step, out of reach of Lightning's precision plugin.

    Under `bf16-true` the plugin rounds every floating-point tensor that it finds in a batch to bfloat16, also
    log-probabilities and weights, whose third digit matters. The DataModule opens the seal when it moves the batch.
    """

    def __init__(self, batch: Rows) -> None:
        self.batch = batch

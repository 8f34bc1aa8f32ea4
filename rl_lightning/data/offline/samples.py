"""Scored responses to learn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rl_lightning.data.encoded import EncodedPrompt
from rl_lightning.data.offline.written import written_rollout
from rl_lightning.data.record import digest
from rl_lightning.data.rollout_epoch import teaches
from rl_lightning.errors import UserError
from rl_lightning.functional import BatchTotals, Reduction, batch_totals
from rl_lightning.padding import stacked
from rl_lightning.stopping import Ends
from rl_lightning.text import said
from rl_lightning.types import Microbatch, Rollout, Rows


@dataclass
class ResponseTable:
    """Those of some scored responses that have something to teach, and how many they were taken from.

    Args:
        rows: responses with a counted token whose advantage is not 0.
        counted: what all responses amount to.
        metrics: what the loggers see of all responses.
        longest: L_max in tokens, which the reduction `constant` divides by.
    """

    rows: Rollout
    counted: BatchTotals
    metrics: dict[str, float]
    longest: int

    @classmethod
    def of(cls, rollout: Rollout, longest: int) -> ResponseTable:
        """Leave out what has no gradient, without advantages only what does not count."""
        rows = rollout.select(teaches(rollout).nonzero()[:, 0])
        return cls(rows, batch_totals(rollout.response_mask, rollout.group_ids), rollout.metrics, longest)

    @property
    def mean_length(self) -> float:
        """Tokens of a stored response on average, its stop token included."""
        return float(self.rows.lengths.sum()) / len(self)

    def __len__(self) -> int:
        return len(self.rows)

    def tokens(self) -> Tensor:
        """Return how many tokens each response has with its prompt, (n,) long."""
        return self.rows.attention_mask.sum(1)

    def batch(self, units: Tensor, weights: Tensor | None = None) -> Microbatch:
        """Return one row a response, with its advantages: see `Table.batch`."""
        return self.rows.microbatch(units, weights)

    def weight_scale(self, reduction: Reduction) -> float:
        """Return kept / all counted sequences (or tokens, under `token_mean`). Rows without gradient are not stored, and this
        rescales the weights of the others: the mean over steps is then the mean over everything that counts.

        Raises:
            UserError: for a reduction that needs whole groups, which are not side by side here.
        """
        if reduction == "group_token_mean":
            raise UserError(
                "reduction group_token_mean needs all responses to a prompt in one optimizer step, and stored samples come in "
                "random order: choose seq_mean or token_mean"
            )
        served = batch_totals(self.rows.response_mask, self.rows.group_ids)
        if reduction == "token_mean":
            return float(served.tokens / self.counted.tokens)
        return float(served.sequences / self.counted.sequences)

    def digest(self) -> str:
        """Return a hash of the responses: the policy's answers, and whatever they came out of."""
        return rows_digest(self.rows)

    def __str__(self) -> str:
        return f"{len(self):,} of {int(self.counted.sequences):,} that count"


def rows_digest(rows: Rows) -> str:
    """Return a hash of the tokens of some rows, and of which of them count."""
    return digest([rows.input_ids.tolist(), rows.response_mask.tolist()])


def with_demonstrations(rollout: Rollout, prompts: Sequence[EncodedPrompt], ends: Ends) -> Rollout:
    """Return scored responses and, after them, the prompts' demonstrations with advantage 1 and reward NaN."""
    written = written_rollout(prompts, (0,), ends)
    missing = {name: torch.full((len(written),), torch.nan) for name in rollout.reward_components}
    written = replace(
        written,
        temperature=rollout.temperature,
        reward_components=missing,
        caps=None if rollout.caps is None else written.lengths,
        notes=None if rollout.notes is None else [{} for _ in range(len(written))],
        advantages=None if rollout.advantages is None else written.response_mask.to(rollout.advantages),
        turns=None if rollout.turns is None else written.response_mask.long(),
        turn_rewards=None if rollout.turn_rewards is None else torch.zeros(written.response_mask.shape),
        transcripts=None if rollout.transcripts is None else [[said("assistant", text)] for text in written.responses],
    )
    return stacked([rollout, written], ends.tokenizer.pad_token_id)

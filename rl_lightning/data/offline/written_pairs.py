"""Pairs that someone wrote, as flat arrays: two hundred thousand as one padded table would take gigabytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from rl_lightning.data.encoded import EncodedPrompts
from rl_lightning.data.offline.written import stack
from rl_lightning.data.record import text_digest
from rl_lightning.types import Microbatch, Rows

#: Rows that are padded at a time where all are needed, one after the other.
_AT_A_TIME = 1024


@dataclass
class WrittenRows:
    """The responses of written pairs, padded only batch by batch: row 2i is what was chosen, row 2i + 1 what was rejected.

    Args:
        prompts: each with a response and a rejected one.
        pad_id: fills up rows of token ids.
        temperature: τ that they are learnt at.
        ref_logprobs: (tokens,) of all responses, row behind row: log π_ref in nats, if the algorithm has a reference.
        metrics: what the loggers see.
    """

    prompts: EncodedPrompts
    pad_id: int
    temperature: float = 1.0
    ref_logprobs: Tensor | None = None
    metrics: dict[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return 2 * len(self.prompts)

    @cached_property
    def lengths(self) -> Tensor:
        """(rows,) long: tokens of each response, whether they count or not."""
        sides = [torch.from_numpy(side.ids.lengths) for side in self.prompts.sides]
        return torch.stack(sides, 1).flatten()

    @cached_property
    def prompt_lengths(self) -> Tensor:
        """(rows,) long: tokens of each row's prompt."""
        return torch.from_numpy(self.prompts.ids.lengths).repeat_interleave(2)

    @property
    def group_ids(self) -> Tensor:
        """(rows,) long: the number of each row's pair."""
        return torch.arange(len(self)) // 2

    @property
    def response_length(self) -> int:
        """R: tokens of the longest response."""
        return int(self.lengths.max())

    @cached_property
    def _starts(self) -> Tensor:
        """(rows,) long: where each response begins in a flat array of all."""
        return self.lengths.cumsum(0) - self.lengths

    def microbatch(self, rows: Tensor, weights: Tensor | None = None) -> Microbatch:
        """Return some rows for one forward pass, as `Rollout.microbatch` does."""
        batch = self._stacked(rows.tolist())
        cut = None if weights is None else weights[:, : batch.response_length]
        known = {**vars(batch), "group_ids": rows // 2, "temperature": self.temperature}
        return Microbatch(**known, weights=cut, ref_logprobs=self._reference(rows))

    def joined(self, passes: Sequence[Tensor], parts: Mapping[int, Tensor]) -> Tensor:
        """Return what passes gave each token, row behind row, (tokens,) float.

        Args:
            passes: the rows of each.
            parts: number of a pass → (its rows, R') float.
        """
        whole = torch.zeros(int(self.lengths.sum()), dtype=torch.promote_types(parts[0].dtype, torch.float32))
        for number, rows in enumerate(passes):
            places, real = self._places(rows)
            whole[places[real]] = parts[number][:, : real.shape[1]][real].to(whole.dtype)
        return whole

    def _places(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return where the tokens of rows are in a flat array, (b, R') long, and which of these are real, (b, R') bool."""
        lengths = self.lengths[rows]
        columns = torch.arange(int(lengths.max()))
        return self._starts[rows, None] + columns, columns < lengths[:, None]

    def _reference(self, rows: Tensor) -> Tensor | None:
        """Return log π_ref of rows, (b, R') in nats, 0 on padding."""
        if self.ref_logprobs is None:
            return None
        places, real = self._places(rows)
        last = len(self.ref_logprobs) - 1
        return torch.where(real, self.ref_logprobs[places.clamp(max=last)], 0.0)

    def _stacked(self, rows: Sequence[int]) -> Rows:
        sides, prompts = self.prompts.sides, self.prompts.ids
        return stack(
            [prompts[row // 2].tolist() for row in rows],
            [sides[row % 2].ids[row // 2].tolist() for row in rows],
            self.pad_id,
            [sides[row % 2].mask(row // 2) for row in rows],
        )

    def digest(self) -> str:
        """Return a hash of the rows: that of `samples.rows_digest` for one padded table of all, which need not be in memory for it."""
        return text_digest(part for column in (0, 1) for part in self._written(column))

    def _written(self, column: int) -> Iterator[str]:
        """Yield, part by part, how Python writes the list of all rows of a padded table: ids (0) or masks (1)."""
        between = "["
        for padded in self._padded():
            yield between + repr(padded[column].tolist())[1:-1]
            between = ", "
        yield "]"

    def _padded(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield all rows, some at a time, as wide as the widest: `input_ids` and `response_mask` as in a `Rollout`."""
        left, right = int(self.prompt_lengths.max()), self.response_length
        for rows in torch.arange(len(self)).split(_AT_A_TIME):
            part = self._stacked(rows.tolist())
            before, after = left - (part.input_ids.shape[1] - part.response_length), right - part.response_length
            ids = functional.pad(part.input_ids, (before, after), value=self.pad_id)
            yield ids, functional.pad(part.response_mask, (0, after), value=False)

"""Offline data for supervised fine-tuning: prompts with a demonstrated response."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rl_lightning.data.encoded import EncodedPrompts
from rl_lightning.data.offline.base import OfflineDataModule
from rl_lightning.data.offline.written import stack
from rl_lightning.data.record import digest
from rl_lightning.data.sources.base import Split
from rl_lightning.data.splits import Use
from rl_lightning.functional import Reduction
from rl_lightning.hooks import Stages
from rl_lightning.types import Microbatch, Sealed


@dataclass
class DemonstrationTable:
    """Prompts and the response to imitate, as tokens; padded only batch by batch.

    Args:
        prompts: each with a written response.
        pad_id: fills up rows of token ids.
    """

    prompts: EncodedPrompts
    pad_id: int
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def _lengths(self) -> npt.NDArray[np.int64]:
        """(n,) tokens of each response, the stop token included."""
        return self.prompts.sides[0].ids.lengths

    @cached_property
    def longest(self) -> int:
        """The length of the longest response in tokens."""
        return int(self._lengths.max())

    @cached_property
    def mean_length(self) -> float:
        """The mean length of a response in tokens."""
        return int(self._lengths.sum()) / len(self)

    def __len__(self) -> int:
        return len(self.prompts)

    def tokens(self) -> Tensor:
        """Return how many tokens each demonstration has, its prompt included, (n,) long."""
        return torch.from_numpy(self.prompts.tokens(0))

    def batch(self, units: Tensor, weights: Tensor | None = None) -> Microbatch:
        """Return one row a demonstration, padded to the longest of them: see `Table.batch`."""
        chosen, side = [int(place) for place in units.tolist()], self.prompts.sides[0]
        rows = stack(
            [self.prompts.ids[place].tolist() for place in chosen],
            [side.ids[place].tolist() for place in chosen],
            self.pad_id,
            [side.mask(place) for place in chosen],
        )
        cut = None if weights is None else weights[:, : rows.response_length]
        return Microbatch(**{**vars(rows), "group_ids": units}, weights=cut)

    def weight_scale(self, reduction: Reduction) -> float:
        """Return 1: everything counts."""
        return 1.0

    def digest(self) -> str:
        """Return a hash of the responses, and of which of their tokens are learnt where that is not all."""
        side = self.prompts.sides[0]
        responses = digest(row.tolist() for row in side.ids)
        return digest([responses, *(row.tolist() for row in side.learnt)]) if len(side.learnt.flat) else responses


class DemonstrationDataModule(OfflineDataModule):
    """Demonstrations to imitate; one Lightning epoch goes through all of them in a new random order.

    Of a conversation, the turns of the assistant are learnt; what others say is read, not learnt.

    Args:
        learn: every turn of the assistant that follows the prompt (`all`), or the last one alone (`last`), to which all before it
            is the prompt.
        **offline_options: batch_size and microbatch_size, in demonstrations; max_tokens_per_microbatch; prompts (with
            demonstrations), sampling, evaluation: see `OfflineDataModule`.
    """

    serves = ("demonstrations",)
    units = "demonstrations"

    def __init__(self, learn: Literal["all", "last"] = "all", **offline_options: Any) -> None:
        super().__init__(**offline_options)
        self.learn = learn
        self._table: DemonstrationTable | None = None

    @property
    def table(self) -> DemonstrationTable:
        """The demonstrations; there from `setup` on."""
        assert self._table is not None
        return self._table

    def setup(self, stage: str) -> None:
        """Check settings, then read and encode the demonstrations."""
        if stage == "fit":
            stages = ("on_rollout_rewards", "keep_groups", "on_rollout_advantages")
            Stages(self.run).refuse(stages, "acts on rollouts, and demonstrations are none")
        super().setup(stage)
        if stage == "fit":
            self._table = DemonstrationTable(self.encoded["train"], self.module.policy_files.tokenizer.pad_token_id)
            self.check_size()

    def use(self, split: Split, brought: frozenset[str]) -> Use:
        """Return what the examples of a split are for; held-out ones are measured on if they bring demonstrations."""
        usual = super().use(split, brought)
        if split == "train":
            usual = replace(usual, new_tokens=0, scored=False)
        elif "demonstrations" not in brought:
            return usual
        return replace(usual, written=self.written_reader(pairs=False), last_turn=self.learn == "last")

    def held_out_loader(self, kind: str, split: Split) -> Iterable[Sealed] | None:
        """Return the held-out data of one kind, batch by batch, demonstrations too; None if there are none."""
        if kind != "demonstrations":
            return super().held_out_loader(kind, split)
        prompts = self.encoded.get(split)
        if prompts is None or not prompts.sides:
            return None
        return self.table_loader(DemonstrationTable(prompts, self.module.policy_files.tokenizer.pad_token_id))

"""Offline data for supervised fine-tuning: prompts with a demonstrated response."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from rl_lightning.data.offline.base import OfflineDataModule
from rl_lightning.data.offline.written import stack
from rl_lightning.data.prompts import EncodedPrompt
from rl_lightning.data.record import digest
from rl_lightning.data.sources.base import Split
from rl_lightning.functional import Reduction
from rl_lightning.hooks import Stages
from rl_lightning.types import Microbatch


@dataclass
class DemonstrationTable:
    """Prompts and the response to imitate, as tokens; padded only batch by batch.

    Args:
        prompts: each with a written response.
        pad_id: fills up rows of token ids.
    """

    prompts: Sequence[EncodedPrompt]
    pad_id: int
    metrics: dict[str, float] = field(default_factory=dict)

    @cached_property
    def responses(self) -> list[list[int]]:
        """Token ids of each response to imitate, the stop token included."""
        return [prompt.written[0] for prompt in self.prompts]

    @cached_property
    def longest(self) -> int:
        """The length of the longest response in tokens."""
        return max(map(len, self.responses))

    @cached_property
    def mean_length(self) -> float:
        """The mean length of a response in tokens."""
        return sum(map(len, self.responses)) / len(self)

    def __len__(self) -> int:
        return len(self.prompts)

    def tokens(self) -> Tensor:
        """Return how many tokens each demonstration has, its prompt included, (n,) long."""
        return torch.tensor([len(prompt.input_ids) + len(prompt.written[0]) for prompt in self.prompts])

    def batch(self, units: Tensor, weights: Tensor | None = None) -> Microbatch:
        """Return one row a demonstration, padded to the longest of them: see `Table.batch`."""
        chosen = [self.prompts[place] for place in units.tolist()]
        rows = stack([one.input_ids for one in chosen], [one.written[0] for one in chosen], self.pad_id)
        cut = None if weights is None else weights[:, : rows.response_length]
        return Microbatch(**{**vars(rows), "group_ids": units}, weights=cut)

    def weight_scale(self, reduction: Reduction) -> float:
        """Return 1: everything counts."""
        return 1.0

    def digest(self) -> str:
        """Return a hash of the responses."""
        return digest(self.responses)


class DemonstrationDataModule(OfflineDataModule):
    """Demonstrations to imitate; one Lightning epoch goes through all of them in a new random order.

    Args:
        **offline_options: batch_size and microbatch_size, in demonstrations; max_tokens_per_microbatch; prompts (with
            demonstrations), sampling, evaluation: see `OfflineDataModule`.
    """

    serves = ("demonstrations",)
    units = "demonstrations"

    def __init__(self, **offline_options: Any) -> None:
        super().__init__(**offline_options)
        self._table: DemonstrationTable | None = None

    @property
    def table(self) -> DemonstrationTable:
        """The demonstrations; there from `setup` on."""
        assert self._table is not None
        return self._table

    def setup(self, stage: str) -> None:
        """Check settings, then read and encode the demonstrations."""
        assert self.trainer is not None
        if stage == "fit":
            stages = ("on_rollout_rewards", "keep_groups", "on_rollout_advantages")
            Stages(self.trainer).refuse(stages, "acts on rollouts, and demonstrations are none")
        super().setup(stage)
        if stage == "fit":
            self._table = DemonstrationTable(self._encoded["train"], self.module.policy_files.tokenizer.pad_token_id)
            self.check_size()

    def learns_written(self, split: Split) -> bool:
        """Tell whether written responses to the prompts of a split are learnt from."""
        return split == "train"

"""Offline data for supervised fine-tuning: prompts with a demonstrated response."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rl_lightning.data.offline import OfflineDataModule
from rl_lightning.data.record import digest
from rl_lightning.data.sources.base import Split
from rl_lightning.data.stages import refuse_stages
from rl_lightning.data.written import stack
from rl_lightning.types import Microbatch


class DemonstrationDataModule(OfflineDataModule):
    """Demonstrations to imitate; one Lightning epoch goes through all of them in a new random order.

    Args:
        **offline_options: batch_size and microbatch_size, in demonstrations; max_tokens_per_microbatch; prompts (with
            demonstrations), sampling, evaluation: see `OfflineDataModule`.
    """

    serves = ("demonstrations",)

    def __init__(self, **offline_options: Any) -> None:
        super().__init__(**offline_options)
        self._responses: list[list[int]] = []

    @property
    def units(self) -> str:
        """What the units are."""
        return "demonstrations"

    def describe(self) -> dict[str, str]:
        """Return the lines of the run card that speak of the data."""
        tokens = sum(map(len, self._responses)) / len(self._responses)
        return super().describe() | {"update": self.update_line(tokens)}

    def setup(self, stage: str) -> None:
        """Check settings, then read and encode the demonstrations."""
        assert self.trainer is not None
        if stage == "fit":
            stages = ("on_rollout_rewards", "keep_groups", "on_rollout_advantages")
            refuse_stages(self.trainer, stages, "acts on rollouts, and demonstrations are none")
        super().setup(stage)
        if stage == "fit":
            self._responses = [prompt.written[0] for prompt in self._encoded["train"]]
            self.check_size()

    def learns_written(self, split: Split) -> bool:
        """Tell whether written responses to the prompts of a split are learnt from."""
        return split == "train"

    def count(self) -> int:
        """Return the number of demonstrations."""
        return len(self._responses)

    def table_digest(self) -> str:
        """Return a hash of the demonstrations."""
        return digest(self._responses)

    def longest(self) -> int:
        """Return the length of the longest demonstration in tokens."""
        return max(map(len, self._responses))

    def tokens(self) -> Tensor:
        """Return how many tokens each demonstration has, its prompt included."""
        pairs = zip(self._encoded["train"], self._responses, strict=True)
        return torch.tensor([len(prompt.input_ids) + len(response) for prompt, response in pairs])

    def batch(self, units: Tensor, weights: Tensor | None = None, **extra: Any) -> Microbatch:
        """Return some demonstrations."""
        places = units.tolist()
        prompts = [self._encoded["train"][place].input_ids for place in places]
        responses = [self._responses[place] for place in places]
        rows = stack(prompts, responses, self.module.policy_files.tokenizer.pad_token_id)
        cut = None if weights is None else weights[:, : rows.response_length]
        return Microbatch(**{**vars(rows), "group_ids": units}, weights=cut, **extra)

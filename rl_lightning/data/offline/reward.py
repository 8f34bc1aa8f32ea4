"""Offline data that rewards have labelled: preference pairs, and scored responses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from rl_lightning.data.cache import Cache
from rl_lightning.data.epochs import EpochLoader
from rl_lightning.data.offline.base import OfflineDataModule
from rl_lightning.data.offline.frozen import FrozenSampling, FrozenTables
from rl_lightning.data.offline.labelled import LabelledTables
from rl_lightning.data.offline.origin import Origin, Pairs
from rl_lightning.data.offline.pairs import PairOptions, PairTable
from rl_lightning.data.offline.samples import ResponseTable
from rl_lightning.data.sources.base import Split
from rl_lightning.data.splits import Use
from rl_lightning.errors import UserError
from rl_lightning.hooks import Stages
from rl_lightning.models import PolicyFiles
from rl_lightning.strategies import data_parallel_size
from rl_lightning.types import Rollout, Sealed

#: The split that says what the source brings, for a stage; `test` for `test` and `predict`.
_SPLITS: dict[str, Split] = {"fit": "train", "validate": "val"}


class RewardDataModule(OfflineDataModule):
    """Preference pairs, or scored responses, whichever the algorithm learns from; one Lightning epoch goes through all of them.

    They are sampled once, from a frozen policy, scored by the rewards and kept on disk under the hash of everything that
    they follow from; or they are read from the source: pairs from its `response_column` and `rejected_column`, responses to
    be scored from its `response_column`. Callbacks act on sampled or scored responses as on any rollout.

    For an algorithm with a reference, its log-probabilities of all pairs or samples are computed once, before training, and kept
    on disk too. An algorithm that is evaluated on pairs gets held-out ones, made in the same way.

    Args:
        origin: `sampled`, or `files`: the source's own responses. If null, `files` where the rows bring what is learnt from, which
            is pairs, or responses with labels; else `sampled`.
        sampler: the policy that is sampled; the one that is trained, as it began, if null.
        group_size: responses to each prompt, G; 8 if null.
        max_prompts: use only the first training prompts; all if null.
        pairs: how pairs are made of sampled responses.
        mix_demonstrations: the source's demonstrations join the samples, as if accepted (D ∪ D′ in Yuan et al., arXiv
            2308.01825).
        train_temperature: τ of the policy softmax(logits/τ) that learns, and that a reference is asked at: 1, at which a policy
            is exported and others run it, whatever it was sampled at; or `as_sampled`, `sampling.temperature`, for a policy that
            is always sampled there. Demonstrations that are mixed in are learnt by the same policy. Reward models have none.
        cache_dir: where the cache is; `cache` under the trainer's `default_root_dir` if null.
        **offline_options: batch_size and microbatch_size, in pairs or samples; max_tokens_per_microbatch; prompts, rewards,
            sampling, evaluation: see `OfflineDataModule`.
    """

    serves = ("preferences", "samples")

    def __init__(
        self,
        origin: Literal["sampled", "files"] | None = None,
        sampler: str | None = None,
        group_size: int | None = None,
        max_prompts: int | None = None,
        pairs: PairOptions | None = None,
        mix_demonstrations: bool = False,
        train_temperature: float | Literal["as_sampled"] = 1.0,
        cache_dir: str | None = None,
        **offline_options: Any,
    ) -> None:
        super().__init__(**offline_options)
        self._origin = Origin(origin, sampler, group_size, max_prompts, pairs, mix_demonstrations, train_temperature)
        self.cache_dir = cache_dir
        self._table: PairTable | ResponseTable | None = None
        self._pairs: dict[Split, PairTable] = {}
        self._rollout: Rollout | None = None

    @property
    def origin(self) -> Literal["sampled", "files"]:
        """Where responses come from; known for sure from `setup` on, unless an option says it."""
        return "sampled" if self._origin.samples else "files"

    @property
    def group_size(self) -> int:
        """Responses to each prompt; of those from files, the most that one prompt has."""
        if self._origin.samples:
            return self._origin.responses
        return max(Counter(ids.tobytes() for ids in self.encoded["train"].ids).values())

    # ------------------------------------------------------------------ set-up

    def setup(self, stage: str) -> None:
        """Check the settings, then make the tables that the stage needs, before the model to be trained is loaded."""
        wanted, split = Pairs.of(self.module), _SPLITS.get(stage, "test")
        shape = self.source.shape(split) if self.source.has(split) else None
        self._origin = self._origin.settled(wanted, shape, wanted.alone and self.rewards.known)
        if wanted.alone and not self._origin.samples:
            self.rewards.drop()
        stages = Stages(self.run)
        if stage == "fit" or wanted.alone:
            limited = self.max_length is not None or self.truncation != "drop"
            self._origin.check(self.module, self.sampling, limited, self.cache_dir is not None)
            self._origin.check_callbacks(stages, wanted)
        super().setup(stage)
        if stage == "fit" and self._table is None:
            stages.check(self.module)
            self._table = self._trained_table()
            # Raises for a reduction that these data cannot serve.
            self._table.weight_scale(self.module.reduction)
            self.check_size()
        for split in self.encoded:
            if split not in self._pairs and self._has_pairs(split):
                self._pairs[split] = self._held_out_pairs(split)

    def use(self, split: Split, brought: frozenset[str]) -> Use:
        """Return what the examples of a split are for."""
        usual, wanted, origin = super().use(split, brought), Pairs.of(self.module), self._origin
        sampled = self.sampling.max_new_tokens if origin.samples else 0
        if split == "train":
            written = self.written_reader(wanted.learnt) if not origin.samples or origin.mix_demonstrations else None
            scored = usual.scored and (origin.samples or not wanted.learnt)
            return Use(sampled, scored, written, first=origin.max_prompts)
        judged = not origin.samples and wanted.judged and (wanted.alone or "preferences" in brought)
        if wanted.judged:  # its pairs are sampled as those of training are
            usual = replace(usual, new_tokens=sampled if wanted.alone else max(usual.new_tokens, sampled))
        return replace(usual, written=self.written_reader(pairs=True) if judged else None)

    def _has_pairs(self, split: Split) -> bool:
        """Tell whether held-out pairs can be made of a split: the source brings them, or they are sampled as those of training are.

        A module that is measured on sampled answers too has none sampled but beside its training.
        """
        wanted = Pairs.of(self.module)
        if split == "train" or not wanted.judged:
            return False
        if not self._origin.samples:
            return len(self.encoded[split].sides) == 2
        return wanted.alone or (self.rewarder is not None and "train" in self.encoded)

    @property
    def learns_as(self) -> str | None:
        """What training steps are given, as `check_fit` takes it."""
        if not self._origin.samples:
            return self.module.learns_from
        if Pairs.of(self.module).learnt and not self.rewards.known:  # nothing could rank what is sampled
            return "preferences"
        return "sampled"

    def needs_rewards(self, stage: str) -> bool:
        """Tell whether a stage cannot do without rewards: to rank what is sampled, or to score responses without labels."""
        wanted = Pairs.of(self.module)
        if self._origin.samples:
            return stage == "fit" or wanted.alone
        if stage != "fit" or wanted.learnt:
            return False
        shape = self.source.shape("train")
        return shape is None or "labels" not in shape.offers

    @property
    def takes_own_reward(self) -> bool:
        """Whether the source's reward is asked for though none is listed: for samples, and not to rank what should have been pairs."""
        return self._origin.samples and not Pairs.of(self.module).any

    @property
    def advice(self) -> str:
        """What to do where no example has a written response."""
        if self._origin.samples:
            return "mix_demonstrations: the source has no demonstrations; set response_column on it, or mix_demonstrations to false"
        if Pairs.of(self.module).any:
            return "origin: files needs pairs from the source: set its response_column and rejected_column"
        return super().advice

    # ------------------------------------------------------------------ tables

    @property
    def cache_folder(self) -> Path:
        """Where expensive results are kept from run to run."""
        return Path(self.cache_dir) if self.cache_dir else super().cache_folder

    @cached_property
    def sampler_files(self) -> PolicyFiles:
        """Where the policy that is sampled comes from."""
        own = self.module.policy_files
        return PolicyFiles(self._origin.sampler, own.options) if self._origin.sampler else own

    @property
    def _maker(self) -> LabelledTables:
        """What makes the tables."""
        assert self.trainer is not None
        own, origin = self.module.policy_files, self._origin
        asked = None
        if origin.samples:
            ends = self.sampling.ends(self.text_format, self.sampler_files.stop_ids)
            asked = FrozenSampling("train", (), self.sampler_files, ends, origin.responses, self.sampling)
        cache = Cache(self.cache_folder, self.trainer.global_rank)
        return LabelledTables(
            self.module,
            self.sampler,
            FrozenTables(self.trainer, self.sampler, self.rewards.models, cache, own),
            Stages(self.trainer),
            self.ends,
            asked,
            self.sampling,
            origin.pairs or PairOptions(),
            origin.mix_demonstrations,
            origin.train_temperature,
            self.seed,
        )

    def _trained_table(self) -> PairTable | ResponseTable:
        """Return what training steps get."""
        maker, prompts = self._maker, self.encoded["train"]
        table: PairTable | ResponseTable
        if Pairs.of(self.module).learnt:
            table, self._rollout = maker.pair_table("train", prompts)
        else:
            table, self._rollout = maker.sample_table(prompts)
        budget = self.max_tokens_per_microbatch
        # A budget cuts optimizer steps once the table is there.
        maker.add_reference(table, self.sizes.microbatch if budget is None else None, budget, self.units)
        return table

    def _held_out_pairs(self, split: Split) -> PairTable:
        """Return the pairs of a split."""
        assert self.trainer is not None
        maker = self._maker
        pairs, _ = maker.pair_table(split, self.encoded[split])
        if len(pairs) < data_parallel_size(self.trainer):
            raise UserError(f"there are fewer {split} pairs than ranks: use more {split} prompts")
        size = self.microbatch_size or self.evaluation.prompts_per_batch
        maker.add_reference(pairs, size, self.max_tokens_per_microbatch, f"{split} pairs")
        return pairs

    @property
    def table(self) -> PairTable | ResponseTable:
        """What is trained on; there from `setup` on."""
        assert self._table is not None
        return self._table

    @property
    def units(self) -> str:
        """What messages call the units, in the plural."""
        return "pairs" if Pairs.of(self.module).learnt else "samples"

    # ----------------------------------------------------------------- serving

    def train_dataloader(self) -> EpochLoader:
        """Return the loader; the first time, callbacks see what was sampled."""
        rollout, self._rollout = self._rollout, None
        if rollout is not None:
            assert self.trainer is not None
            Stages(self.trainer).end(rollout)
        return super().train_dataloader()

    def held_out_loader(self, kind: str, split: Split) -> Iterable[Sealed] | None:
        """Return the held-out data of one kind, batch by batch, pairs too; None if there are none."""
        if kind != "preferences":
            return super().held_out_loader(kind, split)
        return self.table_loader(self._pairs[split]) if split in self._pairs else None

    def describe(self) -> dict[str, str]:
        """Return the lines of the run card that speak of the data."""
        source = "the source"
        if self._origin.samples:
            source = f"{self.group_size} samples of {self.sampler_files.policy} a prompt"
        alone = Pairs.of(self.module).alone
        learnt = "" if alone else f"; learnt at temperature {self.table.rows.temperature:g}"
        card = super().describe()
        update = {"update": card.pop("update")}
        return card | {self.units: f"{self.table}, from {source}{learnt}"} | update

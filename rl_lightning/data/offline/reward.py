"""Offline data that rewards have labelled: preference pairs, and scored responses."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from rl_lightning.data.cache import Cache
from rl_lightning.data.epochs import EpochLoader
from rl_lightning.data.offline.base import OfflineDataModule
from rl_lightning.data.offline.frozen import FrozenSampling, FrozenTables
from rl_lightning.data.offline.labelled import LabelledTables, reference_passes
from rl_lightning.data.offline.pairs import PairOptions, PairTable
from rl_lightning.data.offline.samples import ResponseTable
from rl_lightning.data.sources.base import Example, Split
from rl_lightning.data.sources.problems import Problems
from rl_lightning.errors import UserError
from rl_lightning.hooks import Stages
from rl_lightning.models import PolicyFiles
from rl_lightning.strategies import data_parallel_size
from rl_lightning.types import Rollout, Sealed

log = logging.getLogger(__name__)

#: Responses to each prompt, unless asked for otherwise.
_GROUP_SIZE = 8


class RewardDataModule(OfflineDataModule):
    """Preference pairs, or scored responses, whichever the algorithm learns from; one Lightning epoch goes through all of them.

    They are sampled once, from a frozen policy, scored by the rewards and kept on disk under the hash of everything that
    they follow from; or they are read from the source: pairs from its `response_column` and `rejected_column`, responses to
    be scored from its `response_column`. Callbacks act on sampled or scored responses as on any rollout.

    For an algorithm with a reference, its log-probabilities of all pairs are computed once, before training, and kept on
    disk too. An algorithm that is evaluated on pairs gets held-out ones, made in the same way.

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
        sampled: dict[str, Any] = {
            "sampler": sampler,
            "group_size": group_size,
            "max_prompts": max_prompts,
        }
        sampled |= {"pairs": pairs, "mix_demonstrations": mix_demonstrations or None}
        for name, value in sampled.items():
            if isinstance(value, int) and value < 1:
                raise UserError(f"{name} must be at least 1, not {value}")
            if value is not None and origin == "files":
                raise UserError(f"{name} is set, but with origin: files nothing is sampled: leave it out")
        self._asked_origin = origin
        #: Where responses come from; known for sure from `setup` on, unless an option says it.
        self.origin: Literal["sampled", "files"] = origin or "sampled"
        self._sampled = sampler
        self._group_size = group_size or _GROUP_SIZE
        self.max_prompts = max_prompts
        self.pairs = pairs
        self.mix_demonstrations = mix_demonstrations
        if train_temperature != "as_sampled" and not 0 < train_temperature < math.inf:
            raise UserError(f"train_temperature must be above 0, or as_sampled, not {train_temperature}")
        if train_temperature == "as_sampled" and origin == "files":
            raise UserError("train_temperature: as_sampled, but with origin: files nothing is sampled: set a number")
        self.train_temperature = train_temperature
        self.cache_dir = cache_dir
        self._table: PairTable | ResponseTable | None = None
        self._pairs: dict[Split, PairTable] = {}
        self._rollout: Rollout | None = None

    # ------------------------------------------------------------------ set-up

    @property
    def serves_pairs(self) -> bool:
        """Whether training steps get pairs; samples otherwise."""
        return bool(self.module.learns_from == "preferences")

    @property
    def holds_out_pairs(self) -> bool:
        """Whether the module is measured on pairs."""
        return "preferences" in self.module.evaluates_on

    @property
    def _only_pairs(self) -> bool:
        """Whether it is measured on nothing else."""
        return self.module.evaluates_on == ("preferences",)

    def _has_pairs(self, split: Split) -> bool:
        """Tell whether held-out pairs can be made of a split: the source brings them, or they are sampled as those of training are.

        A module that is measured on sampled answers too has none sampled but beside its training.
        """
        if not self.holds_out_pairs or split == "train":
            return False
        if self.origin == "files":
            return self._only_pairs or "preferences" in self._brings[split]
        return self._only_pairs or (self.rewarder is not None and "train" in self._encoded)

    @property
    def group_size(self) -> int:
        """Responses to each prompt; of those from files, the most that one prompt has."""
        if self.origin == "sampled":
            return self._group_size
        return max(Counter(ids.tobytes() for ids in self._encoded["train"].ids).values())

    @cached_property
    def sampler_files(self) -> PolicyFiles:
        """Where the policy that is sampled comes from."""
        own = self.module.policy_files
        return PolicyFiles(self._sampled, own.options) if self._sampled else own

    @cached_property
    def cache(self) -> Cache:
        """What is kept from run to run."""
        assert self.trainer is not None
        return Cache(self.cache_folder, self.trainer.global_rank)

    @property
    def cache_folder(self) -> Path:
        """Where what is dear to make is kept from run to run."""
        return Path(self.cache_dir) if self.cache_dir else super().cache_folder

    def setup(self, stage: str) -> None:
        """Check the settings, then make the tables that the stage needs, before the model to be trained is loaded."""
        assert self.trainer is not None
        self._settle_origin("train" if stage == "fit" else "test" if stage != "validate" else "val")
        if stage == "fit" or self._only_pairs:
            self._check_options()
        super().setup(stage)
        if stage == "fit" and self._table is None:
            self._stages.check(self.module)
            self._table = self._trained_table()
            # Raises for a reduction that these data cannot serve.
            self._table.weight_scale(self.module.reduction)
            self.check_size()
        for split in self._encoded:
            if self._has_pairs(split) and split not in self._pairs:
                self._pairs[split] = self._held_out_pairs(split)

    def _held_out_pairs(self, split: Split) -> PairTable:
        """Return the pairs of a split, with the log-probabilities of a reference if the module wants some."""
        assert self.trainer is not None
        pairs, _ = self._maker.pair_table(split, self._encoded[split])
        if len(pairs) < data_parallel_size(self.trainer):
            raise UserError(f"there are fewer {split} pairs than ranks: use more {split} prompts")
        if self.module.wants_reference:
            size = self.microbatch_size or self.evaluation.prompts_per_batch
            self._maker.add_reference(
                pairs, reference_passes(pairs, size, self.max_tokens_per_microbatch, f"{split} pairs")
            )
        return pairs

    def _settle_origin(self, split: Split) -> None:
        """Take the source's own responses if no option says otherwise and they are what is learnt from, or judged."""
        wanted = "pairs" if self.serves_pairs or self.holds_out_pairs else "labels"
        if self._asked_origin is None and self.source.has(split):
            shape = self.source.shape(split)
            if shape is not None and wanted in shape.offers:
                self.origin = "files"
                self._let_go_of_sampling(str(shape))
        if self.origin == "files" and self._only_pairs:
            self.rewarder, self._reward_models = None, []

    def _let_go_of_sampling(self, brought: str) -> None:
        """Say which options have no effect, since nothing is sampled for training."""
        idle: dict[str, object] = {"sampler": self._sampled, "max_prompts": self.max_prompts, "pairs": self.pairs}
        idle |= {"mix_demonstrations": self.mix_demonstrations, "rewards": self._only_pairs and self.rewarder}
        idle["group_size"] = self._group_size != _GROUP_SIZE
        if any(idle.values()):
            names = ", ".join(name for name, value in idle.items() if value)
            log.info("The rows bring %s (origin: files), so these options have no effect: %s", brought, names)
        self._sampled = self.max_prompts = self.pairs = None
        self.mix_demonstrations = False
        if self.train_temperature == "as_sampled":
            raise UserError("train_temperature: as_sampled, but with origin: files nothing is sampled: set a number")

    @property
    def learns_as(self) -> str | None:
        """What training steps are given, as `check_fit` takes it."""
        if self.origin == "files":
            return self.module.learns_from
        if self.serves_pairs and self.rewarder is None:  # nothing could rank what is sampled
            return "preferences"
        return "sampled"

    def scores(self, split: Split) -> bool:
        """Tell whether responses to the prompts of a split get rewards, which may need gold answers."""
        paired = self.origin == "files" and split == "train" and self.serves_pairs
        return self.rewarder is not None and not paired

    def _check_options(self) -> None:
        """Refuse what contradicts the algorithm, and callbacks that would do nothing."""
        assert self.trainer is not None
        algorithm = type(self.module).__name__
        pairs = self.serves_pairs or self.holds_out_pairs
        for name, given in (
            ("pairs", not pairs and self.pairs),
            ("mix_demonstrations", pairs and self.mix_demonstrations),
        ):
            if given:
                served = "preference pairs" if pairs else "samples"
                raise UserError(f"{name} is set, but {algorithm} learns from {served}: leave it out")
        if self.origin == "sampled":
            if pairs and self.group_size < 2:
                raise UserError(f"group_size={self.group_size} makes no pairs: set it to at least 2")
            if self.sampling.temperature == 0 and self.group_size > 1:
                raise UserError("sampling.temperature: 0 makes the same response again and again: set it above 0")
            self.sampling.check(training=False)
            if not self.mix_demonstrations and (self.max_length is not None or self.truncation != "drop"):
                raise UserError(
                    "max_length and truncation are of written text, and with origin: sampled none is learnt from: leave them out, and "
                    "set sampling.max_new_tokens"
                )
        elif self.cache_dir and not self.module.wants_reference:
            raise UserError("cache_dir is set, but there is nothing to keep: leave it out")
        refuse = self._stages.refuse
        refuse(["keep_groups"], "drops groups while sampling for training, which is over before it begins")
        if pairs:
            refuse(["on_rollout_advantages"], "makes advantages, and preference pairs have none")
        if pairs and self.origin == "files":
            refuse(["on_rollout_rewards"], "changes rewards, and pairs from files have none")

    def _needs_rewards(self, stage: str) -> bool:
        trains = stage == "fit" and not self.serves_pairs and not self._labelled
        return trains or (self.origin == "sampled" and (stage == "fit" or self._only_pairs))

    @property
    def _labelled(self) -> bool:
        """Whether responses are worth what the source's labels say: no reward is listed, and there are some."""
        shape = self.source.shape("train") if self.origin == "files" and self.rewarder is None else None
        return shape is not None and "labels" in shape.offers

    def examples(self, split: Split, unread: Problems) -> list[Example]:
        """Return the examples of a split that are used."""
        examples = super().examples(split, unread)
        return examples[: self.max_prompts] if split == "train" else examples

    def new_tokens(self, split: Split) -> int:
        """Return how many tokens will be sampled after the prompts of a split."""
        trained = self.sampling.max_new_tokens if self.origin == "sampled" else 0
        if split == "train" or self._only_pairs:
            return trained
        return max(super().new_tokens(split), trained if self.holds_out_pairs else 0)

    # ------------------------------------------------------------------ tables

    def learns_written(self, split: Split) -> bool:
        """Tell whether written responses to the prompts of a split are learnt from, or judged."""
        if self.origin == "sampled":
            return self.mix_demonstrations and split == "train"
        return split == "train" or self._has_pairs(split)

    def learns_written_pairs(self, split: Split) -> bool:
        """Tell whether they are learnt from in pairs, each with the rejected one."""
        return self.serves_pairs if split == "train" else self._has_pairs(split)

    @property
    def advice(self) -> str:
        """What to do where no example has a written response."""
        if self.origin == "sampled":
            return "mix_demonstrations: the source has no demonstrations; set response_column on it, or mix_demonstrations to false"
        if self.serves_pairs or self.holds_out_pairs:
            return "origin: files needs pairs from the source: set its response_column and rejected_column"
        return super().advice

    @property
    def _stages(self) -> Stages:
        assert self.trainer is not None
        return Stages(self.trainer)

    @property
    def _maker(self) -> LabelledTables:
        """What makes the tables."""
        assert self.trainer is not None
        own, files = self.module.policy_files, self.sampler_files
        frozen = FrozenTables(self.trainer, self.sampler, self._reward_models, self.cache, own)
        asked = FrozenSampling("train", (), files, self.ends(files, self.sampling), self._group_size, self.sampling)
        return LabelledTables(
            self.module,
            self.sampler,
            frozen,
            self._stages,
            self.ends(own, self.sampling),
            asked if self.origin == "sampled" else None,
            self.sampling,
            self.pairs or PairOptions(),
            self.mix_demonstrations,
            self.train_temperature,
            self.seed,
        )

    def _trained_table(self) -> PairTable | ResponseTable:
        """Return what training steps get."""
        maker, prompts = self._maker, self._encoded["train"]
        if not self.serves_pairs:
            samples, self._rollout = maker.sample_table(prompts)
            return samples
        pairs, self._rollout = maker.pair_table("train", prompts)
        if self.module.wants_reference:
            budget = self.max_tokens_per_microbatch
            size = self.sizes.microbatch if budget is None else None  # a budget is cut by once the table is there
            passes = reference_passes(pairs, size, budget, self.units)
            maker.add_reference(pairs, passes)
        return pairs

    # ---------------------------------------------------------------- training

    @property
    def table(self) -> PairTable | ResponseTable:
        """What is trained on; there from `setup` on."""
        assert self._table is not None
        return self._table

    @property
    def units(self) -> str:
        """What messages call the units, in the plural."""
        return "pairs" if self.serves_pairs else "samples"

    def train_dataloader(self) -> EpochLoader:
        """Return the loader; the first time, callbacks see what was sampled."""
        rollout, self._rollout = self._rollout, None
        if rollout is not None:
            self._stages.end(rollout)
        return super().train_dataloader()

    def describe(self) -> dict[str, str]:
        """Return the lines of the run card that speak of the data."""
        source = "the source"
        if self.origin == "sampled":
            source = f"{self.group_size} samples of {self.sampler_files.policy} a prompt"
        learnt = "" if self._only_pairs else f"; learnt at temperature {self.table.rows.temperature:g}"
        card = super().describe()
        update = {"update": card.pop("update")}
        return card | {self.units: f"{self.table}, from {source}{learnt}"} | update

    # -------------------------------------------------------------- evaluation

    def held_out_loader(self, kind: str, split: Split) -> Iterable[Sealed] | None:
        """Return the held-out data of one kind, batch by batch, pairs too; None if there are none."""
        if kind != "preferences":
            return super().held_out_loader(kind, split)
        return self.table_loader(self._pairs[split]) if split in self._pairs else None

"""What every DataModule shares: prompts, a generator, rewards, and evaluation by sampling."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from rl_lightning.data.encoded import EncodedPrompts
from rl_lightning.data.evaluation import Evaluation, EvaluationLoader
from rl_lightning.data.fits import check_fit, check_serves, check_stop_ids
from rl_lightning.data.playing import Playing, as_environment, own_prompts, record
from rl_lightning.data.prompt_options import PromptOptions
from rl_lightning.data.prompts import text_format
from rl_lightning.data.record import prompt_digests
from rl_lightning.data.run_rewards import RunRewards
from rl_lightning.data.sampler import Sampler
from rl_lightning.data.served import EpochDataModule
from rl_lightning.data.sources import ChainSum, ExampleSource, as_source
from rl_lightning.data.sources.base import Split
from rl_lightning.data.splits import SplitReader, Use
from rl_lightning.data.unjudged import unjudged
from rl_lightning.environments import EnvironmentSpec
from rl_lightning.errors import UserError
from rl_lightning.generation import Generator, NativeGenerator, Sampling
from rl_lightning.hooks import Stages, StopCallback
from rl_lightning.learner import trained_policy
from rl_lightning.options import Checked
from rl_lightning.rewards import Rewarder, RewardLimits, Rewards, as_rewards, as_specs
from rl_lightning.stopping import Ends
from rl_lightning.strategies import data_parallel_size
from rl_lightning.text import TextFormat
from rl_lightning.types import Sealed

log = logging.getLogger(__name__)

#: The splits that a stage needs; `predict` needs the one that is answered.
_SPLITS: dict[str, tuple[Split, ...]] = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}


def _as_prompts(given: object) -> object:
    """Return what someone has at hand as a source; the class that a dict names is made by the parser."""
    return given if isinstance(given, Mapping) and "class_path" in given else as_source(given)


class SamplingDataModule(EpochDataModule, metaclass=Checked):
    """Prompts in, scored responses out.

    Attributes:
        serves: what training steps may get: `rollouts`, `demonstrations`, `samples`, `preferences`; the module must learn
            from one of them.

    Args:
        prompts: where problems come from; if null, what the environment says first, or the embedded task.
        prompt_options: lengths, chat template, bad rows.
        sampling: how the policy is sampled in training.
        evaluation: how it is sampled on held-out prompts.
        generator: what samples; the policy itself by default.
        rewards: what responses are scored by, added up by weight: a function, its dotted path, a `RewardSpec` or a dict of its
            fields, `own` for the source's reward, or a list of these; the source's if null, which for rows with gold answers is whether
            a response gives them. The first one listed says which responses are correct.
        reward_limits: time, workers and the share of failures that stops the run.
        environment: answers the policy's turns, and says what an episode is worth, the first of the rewards: a function, its dotted
            path, an `EnvironmentSpec` or a dict of its fields. A response is a single turn if null.
        correct_threshold: a response is correct if the first reward reaches this.
        seed: of prompt order and sampling; the run's `seed_everything` if null.
    """

    serves: ClassVar[tuple[str, ...]] = ()
    #: Options that are read by functions of their own in Python; see `Checked`.
    accepts: ClassVar[dict[str, Callable[[object], object]]] = {
        "prompts": _as_prompts,
        "rewards": as_specs,
        "environment": as_environment,
    }
    #: Asks for responses and rewards; there from `setup` on. `RewardDataModule`'s option of that name is a policy that it asks.
    sampler: Sampler

    def __init__(
        self,
        prompts: ExampleSource | None = None,
        prompt_options: PromptOptions | None = None,
        sampling: Sampling | None = None,
        evaluation: Evaluation | None = None,
        generator: Generator | None = None,
        rewards: Rewards | None = None,
        reward_limits: RewardLimits | None = None,
        environment: EnvironmentSpec | None = None,
        correct_threshold: float = 0.5,
        seed: int | None = None,
    ) -> None:
        super().__init__(prompts or own_prompts(environment) or ChainSum())
        self.prompt_options = prompt_options or PromptOptions()
        self.sampling = sampling or Sampling()
        self.evaluation = evaluation or Evaluation()
        self.generator = generator or NativeGenerator()
        limits = reward_limits or RewardLimits()
        self.playing = None if environment is None else Playing(environment, limits)
        self.rewards = RunRewards(as_rewards(rewards), self.playing, limits, self.source)
        self.correct_threshold = correct_threshold
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed
        if self.seed < 0:
            raise UserError(f"seed must be at least 0, not {self.seed}")
        #: The splits that were read, by name.
        self.encoded: dict[Split, EncodedPrompts] = {}
        self._digests: dict[str, str] | None = None

    def __str__(self) -> str:
        # Lightning's own asks every loader, and there is none before a run.
        return f"{type(self).__name__}({type(self.source).__name__})"

    def describe(self) -> dict[str, str]:
        """Return the lines of the run card that speak of the data."""
        sizes = ", ".join(f"{len(prompts):,} {split}" for split, prompts in self.encoded.items())
        listed = [f"{reward.name} × {reward.weight:g}" for reward in (self.rewarder.rewards if self.rewarder else [])]
        return {
            "prompts": f"{type(self.source).__name__}: {sizes}",
            "rewards": ", ".join(listed),
            **(self.playing.describe(self.sampling) if self.playing is not None else {}),
            "responses": f"{self.text_format}; sampling stops at {self.ends}",
        }

    def record(self) -> dict[str, object]:
        """Return what may not change between a checkpoint and a run that goes on from it: option or thing → plain value."""
        if self._digests is None:
            self._digests = self.digests()
        played = record(self.playing, self.sampling)
        return super().record() | {"data.init_args.seed": self.seed, **self._digests, **played}

    def digests(self) -> dict[str, str]:
        """Return what training learns from, in words → its hash."""
        return prompt_digests(self.encoded.get("train"), self.module.policy_files.tokenizer)

    # ------------------------------------------------------------------ set-up

    def setup(self, stage: str) -> None:
        """Check the settings, start the reward workers, and read and encode the prompts that the stage needs."""
        files = self.module.policy_files
        if stage == "fit":
            check_serves(self.module, type(self).__name__, self.serves)
        self._digests = None
        self.prompt_options.prepare(files.tokenizer)
        if stage == "fit":
            self._check_data()
        if self.rewards.asked or self.takes_own_reward:
            self.rewards.settle()
        for callback in self.run.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, StopCallback):
                callback.listen(self.run)
        profile = self.run.profiler.profile  # type: ignore[attr-defined]
        self.sampler = Sampler(self.generator, self.rewarder, self.correct_threshold, self.seed, self.watch, profile)
        if self.playing is not None:
            self.sampling = self.playing.stopped(self.sampling, self.text_format)
            self.sampler = self.playing.start(self.sampler, self.text_format)
        else:
            self.sampling.check_single()
        self.evaluation.sampling(self.sampling).check(training=False)
        check_stop_ids(self.sampling, files)
        if self.rewarder is not None:
            if self.module.learns_from_rewards and "rewards" not in Stages(self.run).supplied:
                self.rewarder.require_weight()
            self.rewards.start(files.tokenizer, self.run.strategy.root_device)
        elif self.needs_rewards(stage):
            self.sampler = unjudged(self.sampler, self.source, self.module.learns_from_rewards or stage != "fit")
        self._read(stage)

    def _check_data(self) -> None:
        """Refuse training data that the algorithm cannot learn from, and say if there are none to validate on."""
        assert self.trainer is not None
        shape, given = self.source.shape("train"), self.learns_as
        if shape is not None and given is not None:
            check_fit(type(self.module).__name__, given, self.source, shape)
        if not self.source.has("val") and self.trainer.limit_val_batches:
            log.info(
                "No validation: %s has no validation data; `val: 0.02` holds a share out", type(self.source).__name__
            )

    def _read(self, stage: str) -> None:
        """Read the splits that a stage needs and that are not there yet."""
        assert self.trainer is not None
        folder, ranks = self.cache_folder, data_parallel_size(self.trainer)
        reader = SplitReader(
            self.trainer,
            self.source,
            self.prompt_options,
            self.module.policy_files,
            self.rewarder,
            folder,
            [] if self.playing is None else self.playing.schemas,
        )
        # Training evaluates if there is something to do it on.
        evaluates = stage != "fit" or (self.trainer.limit_val_batches and self.source.has("val"))
        for split in _SPLITS.get(stage, (self.predicts,)):
            if split in self.encoded or (split != "train" and not evaluates):
                continue
            self.encoded[split] = reader.read(split, self.use)
            if self.playing is not None:
                self.playing.check(self.encoded[split], self.sampler, self.sampling)
            if split != "train" and len(self.encoded[split]) < ranks:
                raise UserError(f"there are fewer {split} prompts than the {ranks} ranks that answer them")

    def use(self, split: Split, brought: frozenset[str]) -> Use:
        """Return what the examples of a split are for; override it where responses are written, or none are sampled.

        Args:
            split: its name.
            brought: what its examples bring beside prompts: `demonstrations`, `preferences`.
        """
        scored = self.rewarder is not None
        if split == "train":
            return Use(self.sampling.max_new_tokens, scored)
        answered = scored and "responses" in self.module.evaluates_on
        new_tokens = self.evaluation.sampling(self.sampling).max_new_tokens if answered else 0
        return Use(new_tokens, scored, first=self.evaluation.max_prompts)

    @property
    def learns_as(self) -> str | None:
        """What training steps are given, as `check_fit` takes it; None for whatever there is."""
        return self.module.learns_from

    def needs_rewards(self, stage: str) -> bool:
        """Tell whether a stage cannot do without rewards; what has none is measured without samples."""
        return "rollouts" in self.serves

    @property
    def takes_own_reward(self) -> bool:
        """Whether the source's reward is asked for though none is listed."""
        return "rollouts" in self.serves and self.module.learns_from_rewards

    @property
    def rewarder(self) -> Rewarder | None:
        """What scores responses; None as long as that is open, and where nothing does."""
        return self.rewards.rewarder

    @property
    def cache_folder(self) -> Path:
        """Where expensive results are kept from run to run."""
        assert self.trainer is not None
        return Path(self.trainer.default_root_dir) / "cache"

    @cached_property
    def text_format(self) -> TextFormat:
        """How prompts and responses become token ids."""
        options = self.prompt_options
        return text_format(self.module.policy_files.tokenizer, options.uses_template, options.system_prompt)

    @property
    def ends(self) -> Ends:
        """What ends the policy's responses."""
        return self.sampling.ends(self.text_format, self.module.policy_files.stop_ids)

    def teardown(self, stage: str) -> None:
        """Stop the reward workers, and let go of reward models and of what the generator holds."""
        self.generator.close()
        if self.playing is not None:
            self.playing.close()
        self.rewards.close()

    # -------------------------------------------------------------- evaluation

    def held_out_loader(self, kind: str, split: Split) -> Iterable[Sealed] | None:
        """Return the held-out data of one kind, batch by batch; None if there are none.

        Args:
            kind: one of the module's `evaluates_on`; `responses` are sampled and scored as they are asked for.
            split: of the data.
        """
        if kind != "responses" or self.rewarder is None:
            return None
        assert self.trainer is not None
        return EvaluationLoader(
            self.trainer,
            self.sampler,
            trained_policy(self.trainer, self.ends),
            split,
            self.encoded.get(split, ()),
            self.evaluation,
            self.evaluation.sampling(self.sampling),
        )

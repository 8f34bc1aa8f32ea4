"""What every DataModule shares: prompts, a generator, rewards, and evaluation by sampling."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, cast

from lightning.pytorch.trainer.states import TrainerFn

from rl_lightning.data.cache import rewards_key
from rl_lightning.data.encoded import EncodedPrompts
from rl_lightning.data.evaluation import Evaluation, EvaluationLoader
from rl_lightning.data.fits import check_fit, require_answers, say_what_was_read
from rl_lightning.data.prompt_options import PromptOptions
from rl_lightning.data.prompts import AddWritten, encode_prompts, text_format
from rl_lightning.data.record import digest, refuse_changes, tokenizer_digest
from rl_lightning.data.reward_models import with_models
from rl_lightning.data.sampler import Sampler
from rl_lightning.data.served import EpochDataModule
from rl_lightning.data.shared import encoded_once
from rl_lightning.data.sources import ChainSum, ExampleSource, as_source
from rl_lightning.data.sources.base import Example, Split
from rl_lightning.data.sources.conversations import at_last_turn
from rl_lightning.data.sources.problems import Problems
from rl_lightning.errors import UserError
from rl_lightning.generation import Generator, NativeGenerator, Sampling
from rl_lightning.hooks import StopCallback
from rl_lightning.learner import Learner, SampledPolicy, trained_policy
from rl_lightning.models import PolicyFiles
from rl_lightning.options import Checked
from rl_lightning.rewards import Rewarder, RewardLimits, Rewards, as_rewards, as_specs
from rl_lightning.stopping import Ends
from rl_lightning.strategies import data_parallel_rank, data_parallel_size
from rl_lightning.text import TextFormat
from rl_lightning.types import Sealed

log = logging.getLogger(__name__)

_NO_REWARD = (
    "has no reward of its own: list at least one under data.init_args.rewards, such as "
    "{function: rl_lightning.rewards.functions.answer_correct}"
)


def _as_prompts(given: Any) -> Any:
    """Return what someone has at hand as a source; the class that a dict names is made by the parser."""
    return given if isinstance(given, Mapping) and "class_path" in given else as_source(given)


class SamplingDataModule(EpochDataModule, metaclass=Checked):
    """Prompts in, scored responses out.

    Attributes:
        serves: what training steps may get: `rollouts`, `demonstrations`, `samples`, `preferences`; the module must learn
            from one of them.

    Args:
        prompts: where problems come from.
        prompt_options: lengths, chat template, bad rows.
        sampling: how the policy is sampled in training.
        evaluation: how it is sampled on held-out prompts.
        generator: what samples; the policy itself by default.
        rewards: what responses are scored by, added up by weight: a function, its dotted path, a `RewardSpec` or a dict of its
            fields, or a list of these; the source's own reward if null. The first one listed says which responses are correct.
        reward_limits: time, workers and the share of failures that stops the run.
        correct_threshold: a response is correct if the first reward reaches this.
        seed: of prompt order and sampling; the run's `seed_everything` if null.
    """

    serves: ClassVar[tuple[str, ...]] = ()
    #: Options that are read by functions of their own in Python; see `Checked`.
    accepts: ClassVar[dict[str, Callable[[Any], Any]]] = {"prompts": _as_prompts, "rewards": as_specs}
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
        correct_threshold: float = 0.5,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.source = prompts or ChainSum()
        self.prompt_options = prompt_options or PromptOptions()
        self.sampling = sampling or Sampling()
        self.evaluation = evaluation or Evaluation()
        self.generator = generator or NativeGenerator()
        default = self.source.default_reward
        specs = as_rewards(rewards) or as_rewards(default)
        scorers, self._reward_models = with_models(specs)
        self.rewarder = Rewarder(scorers, reward_limits or RewardLimits()) if specs else None
        self.correct_threshold = correct_threshold
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed
        if self.seed < 0:
            raise UserError(f"seed must be at least 0, not {self.seed}")
        self._encoded: dict[Split, EncodedPrompts] = {}
        #: What the examples of a split hold beside prompts: `demonstrations`, `preferences`.
        self._brings: dict[Split, frozenset[str]] = {}
        self._digests: dict[str, str] | None = None

    def __str__(self) -> str:
        # Lightning's own asks every loader, and there is none before a run.
        return f"{type(self).__name__}({type(self.source).__name__})"

    def state_dict(self) -> dict[str, Any]:
        """Return how far training has come, and in what."""
        return self.loader.progress() | {"record": self.record()}

    def record(self) -> dict[str, object]:
        """Return what may not change between a checkpoint and a run that goes on from it: option or thing → plain value."""
        if self._digests is None:
            prompts = self._encoded.get("train")
            known = zip(prompts.ids, prompts.examples, strict=True) if prompts is not None else ()
            self._digests = {
                "the training prompts or their answers (data.init_args.prompts, prompt_options)": digest(
                    (ids.tolist(), example.answer) for ids, example in known
                ),
                "the tokenizer": tokenizer_digest(self.module.policy_files.tokenizer),
            }
        return {
            "model.class_path": type(self.module).__name__,
            "data.class_path": type(self).__name__,
            "data.init_args.seed": self.seed,
            **self._digests,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a checkpoint was made.

        Raises:
            UserError: if this run's data are others.
        """
        assert self.trainer is not None
        if self.trainer.state.fn == TrainerFn.FITTING:
            refuse_changes(state_dict["record"], self.record())
        self.loader.restore(state_dict, data_parallel_rank(self.trainer), data_parallel_size(self.trainer))

    @property
    def module(self) -> Learner:
        """The algorithm that these data serve."""
        if self.trainer is None:
            raise UserError(f"{type(self).__name__} needs a Trainer: pass it to trainer.fit(module, datamodule=...)")
        return cast(Learner, self.trainer.lightning_module)

    # ------------------------------------------------------------------ set-up

    def setup(self, stage: str) -> None:
        """Check the settings, start the reward workers, and read and encode the prompts that the stage needs."""
        assert self.trainer is not None
        if self.module.learns_from not in (None, *self.serves) and stage == "fit":
            raise UserError(
                f"{type(self.module).__name__} learns from {self.module.learns_from}, but {type(self).__name__} serves "
                f"{' and '.join(self.serves) or 'nothing'}: change data.class_path or model.class_path"
            )
        self._digests = None
        self.prompt_options.prepare(self.module.policy_files.tokenizer)
        if stage == "fit":
            self._check_data()
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, StopCallback):
                callback.listen(self.trainer)
        profile = self.trainer.profiler.profile  # type: ignore[attr-defined]
        self.sampler = Sampler(self.generator, self.rewarder, self.correct_threshold, self.seed, self.watch, profile)
        self.evaluation.sampling(self.sampling).check(training=False)
        self._check_stop_ids()
        if self.rewarder is not None:
            self.rewarder.start(self.module.policy_files.tokenizer)
            for reward in self._reward_models:
                reward.prepare(self.trainer.strategy.root_device)
        elif self._needs_rewards(stage):
            raise UserError(f"{type(self.source).__name__} {_NO_REWARD}")
        wanted: dict[str, tuple[Split, ...]] = {"fit": ("train", "val"), "validate": ("val",)}
        for split in wanted.get(stage, ("test",)):
            if split not in self._encoded and (split == "train" or self._evaluates(stage)):
                self._encoded[split] = self.encode(split)
                if split != "train" and len(self._encoded[split]) < data_parallel_size(self.trainer):
                    raise UserError(
                        f"there are fewer {split} prompts than the {data_parallel_size(self.trainer)} ranks that answer them"
                    )

    def _check_stop_ids(self) -> None:
        """Refuse stop tokens that the policy does not have."""
        known = self.module.policy_files.config.get_text_config().vocab_size
        unknown = [number for number in self.sampling.stop_token_ids or () if number >= known]
        if unknown:
            raise UserError(f"sampling.stop_token_ids: {unknown[0]} is none of the policy's {known} token ids")

    def _check_data(self) -> None:
        """Refuse training data that the algorithm cannot learn from, and say if there are none to validate on."""
        shape, given = self.source.shape("train"), self.learns_as
        if shape is not None and given is not None:
            check_fit(type(self.module).__name__, given, self.source, shape)
        if not self.source.has("val") and self.trainer and self.trainer.limit_val_batches:
            log.info(
                "No validation: %s has no validation data; `val: 0.02` holds a share out", type(self.source).__name__
            )

    @property
    def learns_as(self) -> str | None:
        """What training steps are given, as `check_fit` takes it; None for whatever there is."""
        return self.module.learns_from

    def _evaluates(self, stage: str) -> bool:
        """Tell whether a stage evaluates; training does if there is something to do it on."""
        return stage != "fit" or bool(self.trainer and self.trainer.limit_val_batches and self.source.has("val"))

    def scores(self, split: Split) -> bool:
        """Tell whether responses to the prompts of a split get rewards, which may need gold answers."""
        return self.rewarder is not None and not (split == "train" and "demonstrations" in self.serves)

    def _needs_rewards(self, stage: str) -> bool:
        """Tell whether a stage cannot do without rewards; what has none is measured without samples."""
        return "rollouts" in self.serves

    def new_tokens(self, split: Split) -> int:
        """Return how many tokens will be sampled after the prompts of a split."""
        if split == "train":
            return 0 if "demonstrations" in self.serves else self.sampling.max_new_tokens
        return self.evaluation.sampling(self.sampling).max_new_tokens if self.answers_held_out else 0

    @property
    def answers_held_out(self) -> bool:
        """Whether held-out prompts are answered, and the answers scored."""
        return "responses" in self.module.evaluates_on and self.rewarder is not None

    def examples(self, split: Split, unread: Problems) -> list[Example]:
        """Return the examples of a split that are used; where bad rows are to be dropped, note those that make no example."""
        drops = self.prompt_options.on_bad == "drop"
        examples = self.source.read(split, unread) if drops else self.source.load(split)
        if not examples and not len(unread):
            raise UserError(f"{type(self.source).__name__} has no examples for the split {split!r}")
        found = {
            "demonstrations": any(example.response is not None for example in examples),
            "preferences": any(example.rejected is not None for example in examples),
        }
        self._brings[split] = frozenset(kind for kind, there in found.items() if there)
        return examples if split == "train" else examples[: self.evaluation.max_prompts]

    @property
    def cache_folder(self) -> Path:
        """Where what is dear to make is kept from run to run."""
        assert self.trainer is not None
        return Path(self.trainer.default_root_dir) / "cache"

    def written_reader(self, split: Split) -> AddWritten | None:
        """Return what adds the tokens of written responses to the prompts of a split; None if nobody learns from them."""
        return None

    def called(self, split: Split) -> str:
        """Return what messages call the examples of a split."""
        return "prompts"

    @cached_property
    def text_format(self) -> TextFormat:
        """How prompts and responses become token ids."""
        options = self.prompt_options
        return text_format(self.module.policy_files.tokenizer, options.uses_template, options.system_prompt)

    def ends(self, files: PolicyFiles, sampling: Sampling) -> Ends:
        """Return what ends the responses of a policy."""
        return Ends.of(self.text_format, files.stop_ids, sampling.stop or (), sampling.stop_token_ids or ())

    def encode(self, split: Split) -> EncodedPrompts:
        """Return the prompts of a split as token ids, or report all that is wrong with them."""
        files, unread = self.module.policy_files, Problems()
        examples = self.examples(split, unread)
        reader, new_tokens = self.written_reader(split), self.new_tokens(split)
        if reader is None:
            examples = [at_last_turn(example) for example in examples]
        if self.rewarder is not None and new_tokens:
            self.rewarder.check_columns([example.metadata for example in examples])
        if self.rewarder is not None and self.scores(split):
            require_answers(self.rewarder, split, self.source, examples)
        # Where nothing is sampled, the reader of written responses knows what is too long.
        context = None if reader is not None and not new_tokens else files.context_length
        judge = self.rewarder if self.scores(split) else None

        def encode() -> EncodedPrompts:
            return encode_prompts(
                examples,
                files.tokenizer,
                **self.prompt_options.encoding,
                context_length=context,
                max_new_tokens=new_tokens,
                check_answers=judge.check_answers if judge else None,
                add_written=reader,
                unread=unread,
                called=self.called(split),
            )

        written, rewards = reader.settings if reader else None, rewards_key(judge) if judge else None
        settings = (self.prompt_options, context, new_tokens, rewards, written)
        assert self.trainer is not None
        prompts = encoded_once(self.trainer, self.cache_folder, examples, unread, files.tokenizer, settings, encode)
        say_what_was_read(split, self.source, len(prompts), unread)
        return prompts

    def teardown(self, stage: str) -> None:
        """Stop the reward workers, and let go of reward models and of what the generator holds."""
        self.generator.close()
        if self.rewarder is not None:
            self.rewarder.close()
        for reward in self._reward_models:
            reward.close()

    def describe(self) -> dict[str, str]:
        """Return the lines of the run card that speak of the data."""
        sizes = ", ".join(f"{len(prompts):,} {split}" for split, prompts in self._encoded.items())
        listed = self.rewarder.rewards if self.rewarder else []
        rewards = ", ".join(f"{reward.name} × {reward.weight:g}" for reward in listed)
        return {
            "prompts": f"{type(self.source).__name__}: {sizes}",
            "rewards": rewards,
            "responses": f"{self.text_format}; sampling stops at {self.ends(self.module.policy_files, self.sampling)}",
        }

    # -------------------------------------------------------------- evaluation

    def trained_policy(self) -> Callable[[], SampledPolicy]:
        """Return a function that returns the policy that is trained, as a sampler takes it."""
        assert self.trainer is not None
        return trained_policy(self.trainer, self.ends(self.module.policy_files, self.sampling))

    def held_out_loader(self, kind: str, split: Split) -> Iterable[Sealed] | None:
        """Return the held-out data of one kind, batch by batch; None if there are none.

        Args:
            kind: one of the module's `evaluates_on`; `responses` are sampled and scored as they are asked for.
            split: of the data.
        """
        if kind != "responses" or not self.answers_held_out:
            return None
        assert self.trainer is not None
        return EvaluationLoader(
            self.trainer,
            self.sampler,
            self.trained_policy(),
            split,
            self._encoded.get(split, ()),
            self.evaluation,
            self.evaluation.sampling(self.sampling),
        )

    def _held_out(self, split: Split, kinds: Sequence[str] | None = None) -> list[Iterable[Sealed]]:
        """Return a loader of each kind of held-out data that the module is measured on, as far as there are some."""
        found = (self.held_out_loader(kind, split) for kind in kinds or self.module.evaluates_on)
        return [loader for loader in found if loader is not None]

    def val_dataloader(self) -> list[Iterable[Sealed]]:
        """Return the validation data, batch by batch, one loader a kind; nothing if there are none."""
        return self._held_out("val") if self.source.has("val") else []

    def test_dataloader(self) -> list[Iterable[Sealed]]:
        """Return the held-out data of the split `test`, batch by batch, one loader a kind.

        Raises:
            UserError: if there is nothing to measure.
        """
        loaders = self._held_out("test")
        if not loaders:
            raise UserError(f"There is nothing to measure: {type(self.source).__name__} {_NO_REWARD}")
        return loaders

    def predict_dataloader(self) -> list[Iterable[Sealed]]:
        """Return the test data, batch by batch.

        Raises:
            UserError: if there is nothing to answer.
        """
        loaders = self._held_out("test", self.module.evaluates_on[-1:])
        if not loaders:
            raise UserError(f"There is nothing to predict: {type(self.source).__name__} {_NO_REWARD}")
        return loaders

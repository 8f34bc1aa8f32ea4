"""What every DataModule shares: prompts, a generator, rewards, and evaluation by sampling."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor

from rl_lightning.data.evaluation import Evaluation, EvaluationLoader
from rl_lightning.data.loader import Epoch, EpochLoader
from rl_lightning.data.prompts import EncodedPrompt, encode_prompts
from rl_lightning.data.sources import ChainSum, ExampleSource
from rl_lightning.data.sources.base import Split
from rl_lightning.errors import UserError
from rl_lightning.generation import Generator, NativeGenerator, Sampling, Stream
from rl_lightning.rewards import Rewarder, RewardLimits, RewardSample, RewardSpec
from rl_lightning.strategies import data_parallel_rank, data_parallel_size
from rl_lightning.types import Rollout, Rows, Sealed

log = logging.getLogger(__name__)

#: Streams of random numbers for different ends must not meet: the split shifts the seed.
_SEED_OF: dict[Split, int] = {"train": 0, "val": 1, "test": 2}


@dataclass
class PromptOptions:
    """How examples become token ids.

    Args:
        max_length: longest prompt in tokens; no limit but the model's context if null.
        system_prompt: put before every prompt, where a chat template is used.
        chat_template: use the tokenizer's; by default if it has one.
        on_bad: an unusable example stops the run (`error`) or is left out and counted (`drop`).
    """

    max_length: int | None = None
    system_prompt: str | None = None
    chat_template: bool | None = None
    on_bad: Literal["error", "drop"] = "error"


class SamplingDataModule(pl.LightningDataModule):
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
        rewards: what responses are scored by, added up by weight; the source's own reward if null. The first one
            listed says which responses are correct.
        reward_limits: time, workers and the share of failures that stops the run.
        correct_threshold: a response is correct if the first reward reaches this.
        seed: of prompt order and sampling; the run's `seed_everything` if null.
    """

    serves: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        prompts: ExampleSource | None = None,
        prompt_options: PromptOptions | None = None,
        sampling: Sampling | None = None,
        evaluation: Evaluation | None = None,
        generator: Generator | None = None,
        rewards: list[RewardSpec] | None = None,
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
        specs = rewards or ([RewardSpec(default)] if default else [])
        self.rewarder = Rewarder(specs, reward_limits or RewardLimits()) if specs else None
        self.loader = EpochLoader(self)
        self.correct_threshold = correct_threshold
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed
        if self.seed < 0:
            raise UserError(f"seed must be at least 0, not {self.seed}")
        self._encoded: dict[Split, list[EncodedPrompt]] = {}
        #: Told how many responses are finished; a progress bar puts itself here.
        self.on_generation_progress: Callable[[int, int], None] | None = None

    # The loader of training data, and where it is; subclasses say what an epoch is.

    def microbatches_per_epoch(self) -> int:
        """Return how many forward passes an epoch has on each rank."""
        raise UserError(f"{type(self).__name__} has nothing to train on: it only evaluates")

    def epoch(self, number: int, state: dict[str, Any] | None) -> Epoch:
        """Make epoch `number`, or restore it from its state."""
        raise UserError(f"{type(self).__name__} has nothing to train on: it only evaluates")

    def train_dataloader(self) -> EpochLoader:
        """Return the loader whose every pass is one epoch: always the same, so that no reload starts it anew."""
        return self.loader

    def state_dict(self) -> dict[str, Any]:
        """Return how far training has come."""
        return self.loader.progress()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        assert self.trainer is not None
        self.loader.restore(state_dict, data_parallel_rank(self.trainer), data_parallel_size(self.trainer))

    @property
    def module(self) -> Any:
        """The algorithm that this data serves."""
        if self.trainer is None:
            raise UserError(f"{type(self).__name__} needs a Trainer: pass it to trainer.fit(module, datamodule=...)")
        return self.trainer.lightning_module

    # ------------------------------------------------------------------ set-up

    def setup(self, stage: str) -> None:
        """Check the settings, start the reward workers, and read and encode the prompts that the stage needs."""
        assert self.trainer is not None
        if self.module.learns_from not in (None, *self.serves) and stage == "fit":
            raise UserError(
                f"{type(self.module).__name__} learns from {self.module.learns_from}, but {type(self).__name__} serves "
                f"{' and '.join(self.serves) or 'nothing'}: change data.class_path or model.class_path"
            )
        self.evaluation.sampling(self.sampling).check(training=False)
        if self.rewarder is not None:
            self.rewarder.start()
        elif "rollouts" in self.serves or self._evaluates(stage):
            raise UserError(
                f"{type(self.source).__name__} has no reward of its own: list at least one under data.init_args.rewards, such as "
                "{function: rl_lightning.rewards.functions.answer_correct}, or train on demonstrations without validation: "
                "--trainer.limit_val_batches=0"
            )
        wanted: dict[str, tuple[Split, ...]] = {"fit": ("train", "val"), "validate": ("val",)}
        for split in wanted.get(stage, ("test",)):
            if split not in self._encoded and (split == "train" or self._evaluates(stage)):
                self._encoded[split] = self.encode(split)
                if split != "train" and len(self._encoded[split]) < data_parallel_size(self.trainer):
                    raise UserError(
                        f"there are fewer {split} prompts than the {data_parallel_size(self.trainer)} ranks that answer them"
                    )

    def _evaluates(self, stage: str) -> bool:
        return stage != "fit" or bool(self.trainer and self.trainer.limit_val_batches)

    def encode(self, split: Split) -> list[EncodedPrompt]:
        """Return the prompts of a split as token ids, or report all that is wrong with them."""
        files = self.module.policy_files
        sampling = self.sampling if split == "train" else self.evaluation.sampling(self.sampling)
        examples = self.source.load(split)
        if not examples:
            raise UserError(f"{type(self.source).__name__} has no examples for the split {split!r}")
        if split != "train":
            examples = examples[: self.evaluation.max_prompts]
        return encode_prompts(
            examples,
            files.tokenizer,
            max_prompt_length=self.prompt_options.max_length,
            context_length=files.context_length,
            max_new_tokens=0 if split == "train" and "demonstrations" in self.serves else sampling.max_new_tokens,
            system_prompt=self.prompt_options.system_prompt,
            chat_template=self.prompt_options.chat_template,
            on_bad=self.prompt_options.on_bad,
            check_answers=self.rewarder.check_answers if self.rewarder else None,
        )

    def teardown(self, stage: str) -> None:
        """Stop the reward workers."""
        if self.rewarder is not None:
            self.rewarder.close()

    def describe(self) -> dict[str, str]:
        """Return the lines of the run card that speak of the data."""
        sizes = ", ".join(f"{len(prompts):,} {split}" for split, prompts in self._encoded.items())
        listed = self.rewarder.rewards if self.rewarder else []
        rewards = ", ".join(f"{reward.name} × {reward.weight:g}" for reward in listed)
        return {"prompts": f"{type(self.source).__name__}: {sizes}", "rewards": rewards}

    # --------------------------------------------------------------- responses

    def respond(
        self, prompts: Sequence[EncodedPrompt], index: Sequence[int], streams: Sequence[Stream], sampling: Sampling
    ) -> Rollout:
        """Sample responses to the prompts and score them.

        Args:
            prompts: one a group.
            index: the number of each prompt in its split.
            streams: random streams, len(prompts) × samples, the samples of a prompt side by side.
            sampling: how.

        Returns:
            A rollout on the policy's device, its metrics holding what generation and rewards cost.
        """
        files = self.module.policy_files
        started = time.perf_counter()
        with self.module.rollout_mode():
            sampled = self.generator.generate(
                self.module.policy,
                [prompt.input_ids for prompt in prompts],
                streams,
                sampling,
                stop_ids=files.stop_ids,
                pad_id=files.tokenizer.pad_token_id,
                progress=self.on_generation_progress,
            )
        generated = time.perf_counter()
        owner = torch.arange(len(prompts)).repeat_interleave(len(streams) // len(prompts))
        device = sampled.response_ids.device
        unscored = torch.full((len(owner),), torch.nan, dtype=torch.float32, device=device)
        rollout = Rollout(
            input_ids=torch.cat([sampled.prompt_ids, sampled.response_ids], 1),
            attention_mask=torch.cat([sampled.prompt_mask, sampled.response_mask], 1),
            response_mask=sampled.response_mask,
            group_ids=owner.to(device),
            temperature=sampling.temperature or 1.0,
            prompt_index=torch.tensor(index)[owner].to(device),
            truncated=sampled.truncated,
            rollout_logprobs=sampled.logprobs,
            prompts=[prompts[i].text for i in owner.tolist()],
            responses=self._texts(sampled.response_ids, sampled.response_mask),
            answers=[prompts[i].example.answer for i in owner.tolist()],
            raw_rewards=unscored,
            rewards=unscored,
            correct=unscored.isfinite(),
        )
        rollout = self._score(rollout, [prompts[i] for i in owner.tolist()])
        rollout.metrics["time/generate_s"] = generated - started
        rollout.metrics["time/reward_s"] = time.perf_counter() - generated
        return rollout

    def _texts(self, ids: Tensor, mask: Tensor) -> list[str]:
        lengths = mask.sum(1).tolist()
        rows = [row[:length] for row, length in zip(ids.tolist(), lengths, strict=True)]
        texts: list[str] = self.module.policy_files.tokenizer.batch_decode(rows, skip_special_tokens=True)
        return texts

    def _score(self, rollout: Rollout, prompts: Sequence[EncodedPrompt]) -> Rollout:
        samples = [
            RewardSample(prompt.text, response, prompt.example.answer, {**prompt.example.metadata, "truncated": cut})
            for prompt, response, cut in zip(prompts, rollout.responses, rollout.truncated.tolist(), strict=True)
        ]
        assert self.rewarder is not None
        scores = self.rewarder.score(samples)
        device = rollout.input_ids.device
        components = {
            name: torch.tensor(values, dtype=torch.float32, device=device) for name, values in scores.components.items()
        }
        total = torch.tensor(scores.total, dtype=torch.float32, device=device)
        judge = next(iter(components.values()))
        # A response without a reward is no lesson: its tokens count nowhere, in no numerator and no denominator.
        mask = rollout.response_mask & ~total.isnan().unsqueeze(1)
        failures = {f"reward_failures/{kind}": float(count) for kind, count in scores.failures.items()}
        return replace(
            rollout,
            response_mask=mask,
            raw_rewards=total,
            rewards=total.clone(),
            correct=judge >= self.correct_threshold,
            reward_components=components,
            metrics={"rollout/failed_fraction": float(total.isnan().float().mean()), **failures},
        )

    def streams(self, split: Split, first: int, count: int) -> list[Stream]:
        """Return the random streams of `count` responses from number `first` on."""
        key = self.seed * len(_SEED_OF) + _SEED_OF[split]
        return [(key, number) for number in range(first, first + count)]

    # -------------------------------------------------------------- evaluation

    def val_dataloader(self) -> EvaluationLoader:
        """Return the validation prompts, sampled and scored batch by batch."""
        return EvaluationLoader(self, "val")

    def test_dataloader(self) -> EvaluationLoader:
        """Return the test prompts, sampled and scored batch by batch."""
        return EvaluationLoader(self, "test")

    def predict_dataloader(self) -> EvaluationLoader:
        """Return the test prompts, sampled and scored batch by batch."""
        return EvaluationLoader(self, "test")

    def transfer_batch_to_device(self, batch: Sealed, device: torch.device, dataloader_idx: int) -> Rows:
        """Open a batch and move it."""
        return batch.batch.to(device)

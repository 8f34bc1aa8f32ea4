"""From prompts to scored responses: steps 1 to 3 of a rollout, and all of an evaluation."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from rl_lightning.data.encoded import EncodedPrompt
from rl_lightning.data.sources.base import Split
from rl_lightning.generation import Generator, Request, Responses, Sampling
from rl_lightning.generation.base import Progress, Stream
from rl_lightning.hooks import Watch
from rl_lightning.learner import SampledPolicy
from rl_lightning.measures import Mean, Seconds, Sum
from rl_lightning.rewards import Ahead, Rewarder, RewardSample
from rl_lightning.types import Rollout

#: The splits draw from streams of random numbers that never meet: the split shifts the seed.
_SEED_OF: dict[Split, int] = {"train": 0, "val": 1, "test": 2}

Prompts = Sequence[EncodedPrompt]


@dataclass
class Sampler:
    """Asks a generator for responses, and rewards for their scores.

    Args:
        generator: samples.
        rewarder: scores; None where nothing is sampled.
        correct_threshold: a response is correct if the first reward reaches this.
        seed: of the random streams.
        watch: told how far sampling is; may end the run.
        profile: context that times what is done inside, by name.
    """

    generator: Generator
    rewarder: Rewarder | None
    correct_threshold: float
    seed: int
    watch: Watch
    profile: Callable[[str], contextlib.AbstractContextManager[None]]

    def streams(self, split: Split, first: int, count: int) -> list[Stream]:
        """Return the random streams of `count` responses of a split from number `first` on."""
        key = self.seed * len(_SEED_OF) + _SEED_OF[split]
        return [(key, number) for number in range(first, first + count)]

    def respond(
        self,
        policy: SampledPolicy,
        split: Split,
        prompts: Sequence[EncodedPrompt],
        numbers: Sequence[int],
        group_size: int,
        sampling: Sampling,
        progress: Progress | None = None,
    ) -> Rollout:
        """Sample responses and score them.

        Rewards that score one response at a time work on each as soon as it has ended, while others are still sampled.

        Args:
            policy: what is sampled.
            split: of the prompts.
            prompts: one a group.
            numbers: one a prompt; it names the random streams of the prompt's responses, whatever else is sampled, on any rank.
            group_size: responses to each prompt, G.
            sampling: how.
            progress: `f(done, total)`, called instead of the watch.

        Returns:
            A rollout on the host, row i × G + j the j-th response to prompt i. Its metrics hold what generation and
            rewards cost.
        """
        request = Request(
            prompts=prompts,
            group_size=group_size,
            streams=[one for number in numbers for one in self.streams(split, number * group_size, group_size)],
            sampling=sampling,
            stop_ids=policy.ends.ids,
            stop_strings=policy.ends.strings,
            pad_id=policy.files.tokenizer.pad_token_id,
            caps=[sampling.cap(prompt.example.max_new_tokens) for prompt in prompts],
        )
        assert self.rewarder is not None
        self.rewarder.step = policy.version if isinstance(policy.version, int) else 0
        started, ahead = time.perf_counter(), self.rewarder.ahead()
        owners = [prompt for prompt in prompts for _ in range(group_size)]
        with ahead, self.profile("[rl_lightning]generate"), policy.mode():
            with self.watch.abandonable(True):
                self.generator.update(policy.model, policy.files, policy.version)
            rollout, samples = self.sampled(policy, request, owners, ahead, progress or self.watch.sampled)
        generated = time.perf_counter()
        with ahead, self.profile("[rl_lightning]reward"):
            rollout = self.reward(rollout, samples, ahead)
        # Before groups are dropped: the times below are those of all.
        rollout.metrics |= self.generator.metrics() | {"work/tokens": Sum(rollout.policy_attention.sum())}
        rollout.metrics["time/generate_s"] = Seconds(generated - started)
        rollout.metrics["time/reward_s"] = Seconds(time.perf_counter() - generated)
        return rollout

    def sampled(
        self, policy: SampledPolicy, request: Request, owners: Prompts, ahead: Ahead, progress: Progress
    ) -> tuple[Rollout, list[RewardSample]]:
        """Return responses that have no rewards yet, and what rewards will see of each; `ahead` sees it as soon as one has ended."""
        samples: dict[int, RewardSample] = {}

        def finished(row: int, ids: list[int]) -> None:
            samples[row] = reward_sample(owners[row], policy.ends.text(ids), not policy.ends.stop(ids), ids)
            ahead.add(row, samples[row])

        said = self.generator.generate(policy.model, request, progress=progress, finished=finished)
        lengths = said.response_mask.sum(1).tolist()
        for row, ids in enumerate(said.response_ids.tolist()):
            if row not in samples:
                finished(row, ids[: lengths[row]])
        ordered = [samples[row] for row in range(len(owners))]
        return unscored(said, owners, request, ordered), ordered

    def reward(self, rollout: Rollout, samples: Sequence[RewardSample], ahead: Ahead | None = None) -> Rollout:
        """Return responses with their rewards; a stop does not wait for them.

        Args:
            rollout: whatever rewards it has are replaced.
            samples, ahead: what rewards see, one a row; `ahead` was given some of them already.
        """
        assert self.rewarder is not None
        with self.watch.abandonable(False):
            scores = self.rewarder.score(samples, ahead, lambda: self.watch.on_boundary(False))
        device = rollout.input_ids.device
        components = {
            name: torch.tensor(values, dtype=torch.float32, device=device) for name, values in scores.components.items()
        }
        total = torch.tensor(scores.total, dtype=torch.float32, device=device)
        # A response without a reward is no lesson: its tokens count nowhere, in no numerator and no denominator.
        mask = rollout.response_mask & ~total.isnan().unsqueeze(1)
        metrics: dict[str, float] = {"rollout/failed_fraction": Mean(int(total.isnan().sum()), len(total))}
        metrics |= {name: Sum(count) for name, count in scores.events().items()}
        metrics |= {f"reward/{name}": Mean(*measured) for name, measured in scores.measures.items()}
        return replace(
            rollout,
            response_mask=mask,
            raw_rewards=total,
            rewards=total.clone(),
            correct=torch.tensor(scores.judged, dtype=torch.float32, device=device) >= self.correct_threshold,
            reward_components=components,
            notes=scores.notes,
            metrics=rollout.metrics | metrics,
        )


def reward_sample(prompt: EncodedPrompt, response: str, truncated: bool, ids: Sequence[int] = ()) -> RewardSample:
    """Return what rewards see: prompt and response with their tokens, and whether the cap on new tokens cut the response off."""
    one = prompt.example
    metadata = {**one.metadata, "truncated": truncated}
    return RewardSample(prompt.text, response, one.answer, metadata, prompt.messages, one.prompt, prompt.input_ids, ids)


def unscored(said: Responses, owners: Prompts, request: Request, samples: Sequence[RewardSample]) -> Rollout:
    """Return sampled responses as a rollout whose rewards are NaN, given the prompt of each and what rewards see of it."""
    texts, responses = [prompt.text for prompt in owners], [sample.response for sample in samples]
    answers = [prompt.example.answer for prompt in owners]
    return said.rollout(request, [prompt.index for prompt in owners], texts, responses, answers)

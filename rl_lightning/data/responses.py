"""From what a generator gives back to a scored rollout."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch

from rl_lightning.data.prompts import EncodedPrompt
from rl_lightning.generation import Responses
from rl_lightning.measures import Mean, Sum
from rl_lightning.rewards import Ahead, Rewarder, RewardSample
from rl_lightning.stopping import Ends
from rl_lightning.types import Rollout


def unscored(
    sampled: Responses,
    prompts: Sequence[EncodedPrompt],
    index: Sequence[int],
    temperature: float,
    ends: Ends,
    texts: Mapping[int, str] | None = None,
) -> Rollout:
    """Return sampled responses as a rollout whose rewards are NaN.

    Args:
        sampled: as many responses for each prompt, side by side.
        prompts: one a group.
        index: the number of each prompt in its split.
        temperature: that they were sampled at; 0 counts as 1.
        ends: of the responses.
        texts: of the responses that are decoded already, by their rows.
    """
    owner = torch.arange(len(prompts)).repeat_interleave(len(sampled.response_ids) // len(prompts))
    device = sampled.response_ids.device
    nothing = torch.full((len(owner),), torch.nan, dtype=torch.float32, device=device)
    lengths = sampled.response_mask.sum(1).tolist()
    known = texts or {}
    responses = [
        known[row] if row in known else ends.text(ids[:length])
        for row, (ids, length) in enumerate(zip(sampled.response_ids.tolist(), lengths, strict=True))
    ]
    return Rollout(
        input_ids=torch.cat([sampled.prompt_ids, sampled.response_ids], 1),
        attention_mask=torch.cat([sampled.prompt_mask, sampled.response_mask], 1),
        response_mask=sampled.response_mask,
        group_ids=owner.to(device),
        temperature=temperature or 1.0,
        prompt_index=torch.tensor(index)[owner].to(device),
        truncated=sampled.truncated,
        rollout_logprobs=sampled.logprobs,
        prompts=[prompts[i].text for i in owner.tolist()],
        responses=responses,
        answers=[prompts[i].example.answer for i in owner.tolist()],
        raw_rewards=nothing,
        rewards=nothing,
        correct=nothing.isfinite(),
    )


def reward_sample(prompt: EncodedPrompt, response: str, truncated: bool) -> RewardSample:
    """Return what rewards see of a response."""
    metadata = {**prompt.example.metadata, "truncated": truncated}
    return RewardSample(prompt.text, response, prompt.example.answer, metadata, prompt.messages)


def scored(
    rollout: Rollout,
    prompts: Sequence[EncodedPrompt],
    rewarder: Rewarder,
    correct_threshold: float,
    ahead: Ahead | None = None,
    watch: Callable[[], None] | None = None,
) -> Rollout:
    """Return a rollout with its rewards.

    Args:
        rollout: whatever rewards it has are replaced.
        prompts: one a row.
        rewarder: knows the rewards.
        correct_threshold: a response is correct if the first reward reaches this.
        ahead: was given some of the samples already.
        watch: called now and then while rewards are waited for; what it raises ends that.
    """
    samples = [
        reward_sample(prompt, response, cut)
        for prompt, response, cut in zip(prompts, rollout.responses, rollout.truncated.tolist(), strict=True)
    ]
    scores = rewarder.score(samples, ahead, watch)
    device = rollout.input_ids.device
    components = {
        name: torch.tensor(values, dtype=torch.float32, device=device) for name, values in scores.components.items()
    }
    total = torch.tensor(scores.total, dtype=torch.float32, device=device)
    judge = next(iter(components.values()))
    # A response without a reward is no lesson: its tokens count nowhere, in no numerator and no denominator.
    mask = rollout.response_mask & ~total.isnan().unsqueeze(1)
    failures = {
        kind if "/" in kind else f"reward_failures/{kind}": Sum(count) for kind, count in scores.failures.items()
    }
    return replace(
        rollout,
        response_mask=mask,
        raw_rewards=total,
        rewards=total.clone(),
        correct=judge >= correct_threshold,
        reward_components=components,
        metrics={"rollout/failed_fraction": Mean(int(total.isnan().sum()), len(total)), **failures},
    )

"""What is computed about a rollout before the policy changes."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch

from rl_lightning.functional import masked_mean
from rl_lightning.types import Rollout


def score_by_policy(module: Any, rollout: Rollout, microbatch: int, single_update: bool) -> Rollout:
    """Let the algorithm look at the rollout, in the microbatches of the first epoch.

    Args:
        module: the algorithm.
        rollout: in the order of the first epoch.
        microbatch: rows in one forward pass.
        single_update: nobody needs the old log-probabilities apart from the current ones; see `OnlineModule.score`.
    """
    started = time.perf_counter()
    parts: list[tuple[torch.Tensor, dict[str, torch.Tensor]]] = []
    with module.rollout_mode():
        for rows in torch.arange(len(rollout)).split(microbatch):
            parts.append((rows, module.score(rollout.microbatch(rows), single_update=single_update)))
    scored: dict[str, Any] = {}
    for rows, part in parts:
        for name, value in part.items():
            shape = rollout.response_mask.shape if value.dim() == 2 else rollout.truncated.shape
            whole = scored.setdefault(name, value.new_zeros(shape))
            if value.dim() == 2:
                whole[rows, : value.shape[1]] = value
            else:
                whole[rows] = value
    rollout = replace(rollout, **scored)
    rollout.metrics["time/score_s"] = time.perf_counter() - started
    return rollout


def logprobs_when_sampled(rollout: Rollout, number: int) -> torch.Tensor:
    """Return log π_old, (B, R), for rollout `number` in which groups waited since an earlier one.

    Theirs is of the policy that sampled them, as the sampler reported it: the present one is not what they came from.
    """
    assert rollout.sampled_in is not None and rollout.old_logprobs is not None
    waited = (rollout.sampled_in < number).unsqueeze(1) & rollout.response_attention
    return torch.where(waited, rollout.rollout_logprobs.to(rollout.old_logprobs), rollout.old_logprobs)


def rollout_metrics(rollout: Rollout) -> dict[str, float]:
    """Return what the loggers see of responses: reward, correctness, length, truncation."""
    scored = rollout.scored
    total, correct = rollout.votes()
    values = {
        "rollout/reward_mean": masked_mean(rollout.rewards, scored),
        "rollout/reward_std": rollout.rewards[scored].std() if int(scored.sum()) > 1 else torch.zeros(()),
        "rollout/correct_fraction": masked_mean(rollout.correct.float(), scored),
        "rollout/length_mean": rollout.lengths.float().mean(),
        "rollout/truncated_fraction": rollout.truncated.float().mean(),
        "rollout/all_right_fraction": masked_mean((correct == total).float(), total > 0),
        "rollout/all_wrong_fraction": masked_mean((correct == 0).float(), total > 0),
    }
    values |= {
        f"reward/{name}": masked_mean(component, ~component.isnan())
        for name, component in rollout.reward_components.items()
    }
    return {name: float(value) for name, value in values.items()}

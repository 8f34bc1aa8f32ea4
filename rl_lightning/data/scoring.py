"""What is computed about a rollout before the policy changes."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from rl_lightning.errors import UserError
from rl_lightning.functional import known_or, masked_mean, masked_variance
from rl_lightning.functional.masking import Total, alone
from rl_lightning.measures import Seconds
from rl_lightning.shapes import require
from rl_lightning.types import Rollout


def score_by_policy(module: Any, rollout: Rollout, microbatches: Iterable[Tensor], single_update: bool) -> Rollout:
    """Let the algorithm look at the rollout, in the microbatches of the first epoch.

    Args:
        module: the algorithm.
        rollout: in the order of the first epoch.
        microbatches: the rows of each forward pass.
        single_update: nobody needs the old log-probabilities apart from the current ones; see `OnlineModule.score`.
    """
    started = time.perf_counter()
    parts: list[tuple[torch.Tensor, dict[str, torch.Tensor]]] = []
    with module.trainer.profiler.profile("[rl_lightning]score"), module.rollout_mode():
        for rows in microbatches:
            parts.append((rows, module.score(rollout.microbatch(rows), single_update=single_update)))
    scored: dict[str, Any] = {}
    known = {item.name for item in fields(Rollout)}
    for rows, part in parts:
        width = int(rollout.response_attention[rows].any(0).sum())
        for name, value in part.items():
            what = f"what {type(module).__name__}.score returns as {name!r}"
            if name not in known:
                raise UserError(f"{what} has no place in a rollout: a Rollout has no field of that name")
            if isinstance(value, Tensor) and value.dim() == 1:
                require(what, value, (len(rows),), "one number a response")
            else:
                require(what, value, (len(rows), width), "one number a response token")
            shape = rollout.response_mask.shape if value.dim() == 2 else rollout.truncated.shape
            whole = scored.setdefault(name, value.new_zeros(shape))
            if value.dim() == 2:
                whole[rows, : value.shape[1]] = value
            else:
                whole[rows] = value
    rollout = replace(rollout, **scored)
    rollout.metrics["time/score_s"] = Seconds(time.perf_counter() - started)
    return rollout


def logprobs_when_sampled(rollout: Rollout, number: int) -> torch.Tensor:
    """Return log π_old, (B, R), for rollout `number` in which groups waited since an earlier one.

    Theirs is of the policy that sampled them, as the sampler reported it: the present one is not what they came from. A token
    for which it reported none has the present policy's.
    """
    assert rollout.sampled_in is not None and rollout.old_logprobs is not None
    waited = (rollout.sampled_in < number).unsqueeze(1) & rollout.response_attention
    return torch.where(waited, known_or(rollout.rollout_logprobs, rollout.old_logprobs), rollout.old_logprobs)


def teaches(rollout: Rollout) -> Tensor:
    """Return which rows have a counted token whose advantage is not 0, without advantages a counted token, (B,) bool."""
    mask = rollout.response_mask
    return (mask if rollout.advantages is None else mask & (rollout.advantages != 0)).any(1)


def worth_observing(rollout: Rollout, anything_teaches: bool) -> Tensor:
    """Return the rows that teach something, or, where none does on any rank, the first that counts of each group, (B,) bool on
    the CPU: a set that does not depend on the number of ranks, on which a policy is observed."""
    if anything_teaches:
        return teaches(rollout).cpu()
    counted = rollout.response_mask.any(1).cpu()
    groups = rollout.group_ids.cpu()
    earlier = (groups[:, None] == groups) & counted & (torch.arange(len(groups)) < torch.arange(len(groups))[:, None])
    return counted & ~earlier.any(1)


def worth_computing(observed: Tensor, least: int) -> Tensor:
    """Return the rows that are observed, and, where these are fewer than `least`, further ones, (B,) bool."""
    order = observed.long().argsort(descending=True, stable=True)
    return torch.zeros_like(observed).index_fill(0, order[: max(least, int(observed.sum()))], True)


def rollout_metrics(rollout: Rollout, total: Total = alone) -> dict[str, float]:
    """Return what the loggers see of responses: reward, correctness, length, truncation.

    Args:
        rollout: this rank's rows.
        total: adds sums up over ranks, for the metrics of all rows.
    """
    scored, everything = rollout.scored, torch.ones_like(rollout.scored)
    votes, correct = rollout.votes()
    count = total(scored.sum().to(rollout.rewards))
    values = {
        "rollout/reward_mean": masked_mean(rollout.rewards, scored, total),
        "rollout/reward_std": (
            masked_variance(rollout.rewards, scored, total) * count / (count - 1).clamp(min=1)
        ).sqrt(),
        "rollout/correct_fraction": masked_mean(rollout.correct.float(), scored, total),
        "rollout/length_mean": masked_mean(rollout.lengths.float(), everything, total),
        "rollout/truncated_fraction": masked_mean(rollout.truncated.float(), everything, total),
        "rollout/all_right_fraction": masked_mean((correct == votes).float(), votes > 0, total),
        "rollout/all_wrong_fraction": masked_mean((correct == 0).float(), votes > 0, total),
    }
    values |= {
        f"reward/{name}": masked_mean(component, ~component.isnan(), total)
        for name, component in rollout.reward_components.items()
    }
    return {name: float(value) for name, value in values.items()}

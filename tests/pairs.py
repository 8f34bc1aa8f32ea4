"""Preference pairs made by hand."""

import dataclasses

import torch

from rl_lightning.functional import batch_totals, token_weights
from rl_lightning.types import PreferenceBatch
from tests.support import random_rollout


def random_pairs(pairs=8, dtype=torch.float64):
    """Return pairs of random responses of unequal lengths, with everything that an objective may read."""
    rollout = random_rollout(groups=pairs, group_size=2, dtype=dtype)
    totals = batch_totals(rollout.response_mask, rollout.group_ids)
    return PreferenceBatch(
        input_ids=rollout.input_ids,
        attention_mask=rollout.attention_mask,
        response_mask=rollout.response_mask,
        group_ids=rollout.group_ids,
        temperature=1.0,
        weights=token_weights(rollout.response_mask, rollout.group_ids, "seq_mean", totals),
        ref_logprobs=rollout.ref_logprobs,
        margins=rollout.rewards[0::2] + 0.1,
    )


def part_of(batch, pairs):
    """Cut some pairs out, as a loader does; weights are those of the whole step."""
    rows = torch.tensor([row for pair in pairs for row in (2 * pair, 2 * pair + 1)])
    tensors = {
        name: value[rows]
        for name, value in vars(batch).items()
        if isinstance(value, torch.Tensor) and name != "margins"
    }
    return dataclasses.replace(batch, **tensors, margins=batch.margins[list(pairs)])

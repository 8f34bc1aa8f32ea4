"""Rows of different lengths as one table."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from rl_lightning.types import Rollout


def pad_left(rows: Sequence[Sequence[int]], fill: int) -> tuple[Tensor, Tensor]:
    """Stack token ids of different lengths, aligned at the right.

    Returns:
        ids (B, L) long, and the mask of real tokens (B, L) bool.
    """
    width = max(len(row) for row in rows)
    ids = torch.tensor([[fill] * (width - len(row)) + list(row) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    return ids, torch.arange(width) >= (width - lengths).unsqueeze(1)


def pad_right(rows: Sequence[Sequence[int]], fill: int) -> tuple[Tensor, Tensor]:
    """Stack token ids of different lengths, aligned at the left.

    Returns:
        ids (B, L) long, and the mask of real tokens (B, L) bool.
    """
    width = max(len(row) for row in rows)
    ids = torch.tensor([list(row) + [fill] * (width - len(row)) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    return ids, torch.arange(width) < lengths.unsqueeze(1)


def stacked(parts: Sequence[Rollout], pad_id: int) -> Rollout:
    """Return rollouts of any widths as one; groups stay apart, metrics are the first's.

    Prompts are padded left and responses right, so all responses begin in one column:

        . . p p p r r . .
        p p p p p r r r r

    Args:
        parts: on one device, all with the same fields filled in.
        pad_id: fills the columns of token ids that a row does not have.
    """
    prompt = max(part.input_ids.shape[1] - part.response_length for part in parts)
    response = max(part.response_length for part in parts)

    def widen(name: str, value: Tensor, left: int, right: int) -> Tensor:
        if name in ("input_ids", "attention_mask"):
            return functional.pad(value, (left, right), value=pad_id if name == "input_ids" else 0)
        return functional.pad(value, (0, right)) if value.dim() == 2 else value

    wide: list[Rollout] = []
    groups = 0
    for part in parts:
        left = prompt - (part.input_ids.shape[1] - part.response_length)
        right = response - part.response_length
        tensors: dict[str, Any] = {n: widen(n, v, left, right) for n, v in vars(part).items() if isinstance(v, Tensor)}
        tensors["group_ids"] = part.group_ids + groups
        groups = int(tensors["group_ids"].max()) + 1 if len(part) else groups
        wide.append(dataclasses.replace(part, **tensors))
    joined: dict[str, Any] = {}
    for item in dataclasses.fields(Rollout):
        values = [getattr(part, item.name) for part in wide]
        if isinstance(values[0], Tensor):
            joined[item.name] = torch.cat(values)
        elif isinstance(values[0], list) and item.name != "notes":
            joined[item.name] = [entry for value in values for entry in value]
        elif item.name == "notes" and any(values):  # a rollout from an older checkpoint has none
            joined["notes"] = [note for part in wide for note in part.notes or [{}] * len(part)]
        elif item.name == "reward_components":
            joined[item.name] = {name: torch.cat([value[name] for value in values]) for name in values[0]}
    return dataclasses.replace(wide[0], **joined)

"""What has been computed of responses that may go on: their keys and values, from one turn to the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rl_lightning.generation.base import Stream

#: Keys and values, layer by layer.
Layers = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Past:
    """The cache of one response.

    Args:
        ids: the tokens that have been read, those of the prompt first.
        layers: keys and values, (heads, len(ids), D) each.
    """

    ids: list[int]
    layers: Layers


@dataclass
class Kept:
    """Caches of responses, by their streams, for the next turn.

    Args:
        room: tokens that may still be kept.
        held: tokens that are kept.
    """

    room: int = 0
    held: int = 0
    _rows: dict[tuple[int, int], Past] = field(default_factory=dict)

    def put(self, stream: Stream, ids: list[int], layers: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Keep the cache of a response, if there is room; it is copied.

        Args:
            stream: of the response.
            ids: tokens that have been read.
            layers: their keys and values, (heads, len(ids), D) each.
        """
        if len(ids) <= self.room:
            self.room, self.held = self.room - len(ids), self.held + len(ids)
            self._rows[stream[:2]] = Past(ids, [(keys.clone(), values.clone()) for keys, values in layers])

    def of(self, stream: Stream, ids: Sequence[int]) -> Past | None:
        """Return the cache of a response that goes on after some tokens; None if it is not kept, or was of other tokens."""
        past = self._rows.get(stream[:2])
        known = past is not None and len(past.ids) < len(ids) and list(ids[: len(past.ids)]) == past.ids
        return past if known else None


def side_by_side(pasts: Sequence[Past]) -> tuple[Layers, Tensor]:
    """Return caches as one, padded left, and the mask of real columns.

    Returns:
        Keys and values, (N, heads, P, D) each, layer by layer; (N, P) bool.
    """
    width = max(len(past.ids) for past in pasts)
    device = pasts[0].layers[0][0].device

    def stacked(parts: Sequence[Tensor]) -> Tensor:
        return torch.stack([torch.nn.functional.pad(part, (0, 0, width - part.shape[1], 0)) for part in parts])

    layers = [
        (stacked([past.layers[number][0] for past in pasts]), stacked([past.layers[number][1] for past in pasts]))
        for number in range(len(pasts[0].layers))
    ]
    lengths = torch.tensor([len(past.ids) for past in pasts], device=device)
    return layers, torch.arange(width, device=device) >= (width - lengths)[:, None]


def closed_up(layers: Layers, mask: Tensor) -> tuple[Layers, Tensor]:
    """Return caches without padding in their midst: the real columns of each row, aligned at the right.

    Args:
        layers: (N, heads, C, D) each.
        mask: (N, C) bool.

    Example:
        >>> closed_up([], torch.tensor([[True, False, True], [True, False, False]]))[1]
        tensor([[ True,  True],
                [False,  True]])
    """
    counts = mask.sum(1)
    width = int(counts.max())
    # A stable sort puts padding first and leaves the order of the others.
    columns = mask.long().argsort(dim=1, stable=True)[:, -width:]
    index = columns[:, None, :, None]
    moved = [tuple(one.gather(2, index.expand(-1, one.shape[1], -1, one.shape[3])) for one in pair) for pair in layers]
    real = torch.arange(width, device=mask.device) >= (width - counts)[:, None]
    return [(keys, values) for keys, values in moved], real

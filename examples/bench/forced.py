"""Responses of forced lengths: no end before, the end there. Nothing here imports this library, for its memory is measured."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor


def force(logits: Tensor, stops: list[int], ends: Tensor) -> None:
    """Leave nothing but the first stop token where a response ends, and everything but those elsewhere; in place.

    Args:
        logits: (B, V).
        stops: token ids.
        ends: (B,) bool.
    """
    logits[:, stops] = -torch.inf
    if bool(ends.any()):
        logits[ends] = -torch.inf
        logits[ends, stops[0]] = 0.0


class ForceEnds(LogitsProcessor):
    """The same for `generate` of transformers, over one call.

    Args:
        lengths: of each row, in tokens.
        new_tokens: the cap; rows that reach it have no end.
        stops: token ids.
    """

    def __init__(self, lengths: Sequence[int], new_tokens: int, stops: list[int]) -> None:
        self._lengths = torch.tensor(lengths)
        self._new_tokens = new_tokens
        self._stops = stops
        self._column = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the logits of the next token, changed in place."""
        self._column += 1
        ends = (self._column == self._lengths) & (self._lengths < self._new_tokens)
        force(scores, self._stops, ends)
        return scores

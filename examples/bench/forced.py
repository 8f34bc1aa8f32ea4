"""Responses of forced lengths. This file does not import rl_lightning, because the peer's memory is measured."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor


def force(logits: Tensor, stops: list[int], ends: Tensor) -> None:
    """Change logits in place: rows that end here can draw only the first stop token, all other rows no stop token.

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
    """Logits processor with the same effect for one call of transformers' `generate`.

    Args:
        lengths: of each row, in tokens.
        new_tokens: the cap; rows of this length get no stop token.
        stops: token ids.
    """

    def __init__(self, lengths: Sequence[int], new_tokens: int, stops: list[int]) -> None:
        self._lengths = torch.tensor(lengths)
        self._new_tokens = new_tokens
        self._stops = stops
        self._column = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Change the logits of the next token in place, and return them."""
        self._column += 1
        ends = (self._column == self._lengths) & (self._lengths < self._new_tokens)
        force(scores, self._stops, ends)
        return scores

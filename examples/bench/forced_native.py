"""Responses of forced lengths from this library's own generator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from examples.bench.forced import force
from examples.bench.work import lengths_of_calls
from rl_lightning.generation import NativeGenerator, Request, Responses, Sampling


class ForcedLengths(NativeGenerator):
    """Samples responses of the lengths in `forced_lengths`: those of call n in the n-th call.

    Args:
        **options: max_tokens, max_rows: see `NativeGenerator`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._tables: dict[tuple[int, int], Any] = {}
        self._lengths = torch.empty(0)
        self._stops: list[int] = []

    def generate(self, model: Any, request: Request, progress: Any = None, finished: Any = None) -> Responses:
        """See `Generator.generate`."""
        shape = (len(request.streams), request.sampling.max_new_tokens)
        table = self._tables.setdefault(shape, lengths_of_calls(*shape))
        self._lengths = torch.tensor(next(table))
        self._stops = sorted(request.stop_ids)
        return super().generate(model, request, progress, finished)

    def draw(
        self, logits: Tensor, uniform: Tensor, sampling: Sampling, rows: Tensor, columns: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `NativeGenerator.draw`."""
        lengths = self._lengths[rows]
        force(logits, self._stops, (columns + 1 == lengths) & (lengths < sampling.max_new_tokens))
        return super().draw(logits, uniform, sampling, rows, columns)

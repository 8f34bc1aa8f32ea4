"""Sampling with the policy itself, for causal language models with plain attention."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rl_lightning.errors import UserError
from rl_lightning.generation.base import Finished, Generator, Progress, Request, Responses
from rl_lightning.generation.blocked import blocked_weights, narrow_weights
from rl_lightning.generation.kept import Kept
from rl_lightning.generation.loop import Batch, Decoding
from rl_lightning.generation.options import Sampling
from rl_lightning.generation.room import room_for
from rl_lightning.generation.sampling import draw
from rl_lightning.generation.steady import Replayed, SteadyDecoding
from rl_lightning.generation.transformers import TransformersGenerator
from rl_lightning.measures import Sum
from rl_lightning.models.families import unlike_plain_attention

log = logging.getLogger(__name__)


class NativeGenerator(Generator):
    """Samples with the policy itself: no copy of the weights, no second set of kernels.

    The prompt of a group is read once, and its keys and values are copied for every response. A response that has ended gives
    its slot to the next one (continuous batching). In an environment the keys and values of a response are kept until its next turn,
    as far as `max_tokens` has room, and only what is new is read then. A model that is not plain causal attention in every layer is sampled by
    `TransformersGenerator` instead, which is slower.

    Args:
        max_tokens: prompt and response tokens that the cache has room for. It bounds memory: as many responses are sampled
            side by side as fit. In float32 that changes no response; in half precision products of more or fewer rows round differently, and
            a token may. If null, 65,536 on a CPU, and on a GPU what fits into half of its free memory, a power of 2.
        max_rows: responses sampled side by side; no bound but `max_tokens` if null.
        bf16: multiply in bfloat16, whatever the precision of training. It is faster where the processor has instructions for it.
            The log-probabilities then differ from the trainer's, and online algorithms correct for that.
        graphs: replay decoding steps from CUDA graphs, on a GPU; see `rl_lightning.generation.steady`.
    """

    def __init__(
        self, max_tokens: int | None = None, max_rows: int | None = None, bf16: bool = False, graphs: bool = False
    ) -> None:
        for name, value in (("max_tokens", max_tokens), ("max_rows", max_rows)):
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, not {value}")
        self.max_tokens = max_tokens
        self.max_rows = max_rows
        self.bf16 = bf16
        self.graphs = graphs
        if bf16:
            self.samples_from_copy = True
        self._work: dict[str, float] = {}
        self._kept: Kept | None = None
        self._told: set[type] = set()

    def forget(self) -> None:
        """Free the keys and values that were kept for further turns."""
        self._kept = None

    def metrics(self) -> dict[str, float]:
        """Return what was done since the last call: `steps` decoding steps, `rows` tokens read in them, `seen` cached columns that
        attention read in them, and `prefill_rows` prompt tokens read before them, each as `work/NAME`."""
        work, self._work = self._work, {}
        return work

    def draw(
        self, logits: Tensor, uniform: Tensor, sampling: Sampling, rows: Tensor, columns: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Draw the next token of some responses. A subclass may override this to constrain what is sampled.

        Args:
            logits: (n, V).
            uniform: (n,) in [0, 1).
            sampling: temperature and truncation.
            rows: (n,) long; which responses of the request these are.
            columns: (n,) long; how many tokens each of them has already.

        Returns:
            tokens (n,) long and their log-probabilities (n,) float32; see `rl_lightning.generation.sampling.draw`.
        """
        return draw(logits, uniform, sampling)

    @torch.no_grad()
    def generate(
        self,
        model: nn.Module,
        request: Request,
        progress: Progress | None = None,
        finished: Finished | None = None,
    ) -> Responses:
        """See `Generator.generate`.

        Raises:
            UserError: if not even one response fits into `max_tokens`, or logits are not finite.
        """
        longest, rows = request.longest_row, len(request.streams)
        reason = _unlike_what_slots_hold(model, longest)
        if reason is not None:
            return self._through_transformers(reason, model, request, progress)
        room = self.max_tokens or room_for(model, longest)
        if longest > room:
            given = f"={room}" if self.max_tokens else ": null, which follows from the device,"
            raise UserError(
                f"NativeGenerator.max_tokens{given} has no room for one response: a prompt and max_new_tokens="
                f"{request.sampling.max_new_tokens} make {longest} tokens, and the key-value cache holds {room}: set a larger "
                "max_tokens, or shorten one of them"
            )
        # Rows side by side are padded to the longest prompt. Where there is no room for that, those that do not fit are read apart.
        wide = request.widest_rows
        capacity = longest if wide > room or _unlike_what_slots_hold(model, wide) else wide
        most = min(room // capacity, self.max_rows or rows, rows)
        # Where responses begin anew, nothing of earlier ones is of use: the weights may have changed since.
        before = self._kept if any(len(stream) > 2 for stream in request.streams) else None
        held = 0 if before is None else before.held
        self._kept = Kept(room - most * capacity - held) if request.goes_on else None
        batch = Batch.empty(request, next(model.parameters()).device, spare=self.graphs)
        run = self._decoding(batch.ids.device)(
            self.draw, cast(PreTrainedModel, model), request, most, capacity, before, self._kept
        )
        done = 0
        with self._precision(batch.ids.device), blocked_weights(model, most), narrow_weights(model):
            for ended in run.to_the_end(batch):
                done += len(ended)
                if finished is not None:
                    for row in ended:
                        finished(row, run.said(batch, row))
                if progress is not None:
                    progress(done, rows)
        for name, count in run.work.items():
            self._work[f"work/{name}"] = Sum(self._work.get(f"work/{name}", 0) + count)
        return batch.responses(request)

    def _decoding(self, device: torch.device) -> Callable[..., Decoding]:
        """Return the loop of a device: where the host runs ahead, one that waits for it seldom."""
        if device.type != "cuda":
            return Decoding
        return partial(SteadyDecoding, replayed=Replayed() if self.graphs else None)

    def _precision(self, device: torch.device) -> contextlib.AbstractContextManager[None]:
        return torch.autocast(device.type, torch.bfloat16) if self.bf16 else contextlib.nullcontext()

    def _through_transformers(
        self, reason: str, model: nn.Module, request: Request, progress: Progress | None
    ) -> Responses:
        """Sample a model that slots cannot hold, and warn once for each class of model."""
        if type(model) not in self._told:
            self._told.add(type(model))
            log.warning("%s %s: sampled by its own generate, which is slower", type(model).__name__, reason)
        rows = max(1, (self.max_tokens or room_for(model, request.longest_row)) // request.longest_row)
        other = TransformersGenerator(min(rows, self.max_rows or rows))
        with self._precision(next(model.parameters()).device):
            return other.generate(model, request, progress)


def _unlike_what_slots_hold(model: nn.Module, capacity: int) -> str | None:
    """Return why a model cannot be sampled in slots of so many tokens; None if it can."""
    reason = unlike_plain_attention(model, capacity)
    if reason is None and str(cast(PreTrainedModel, model).config._attn_implementation).startswith("flash"):
        return "takes no mask of its own under flash attention"
    return reason

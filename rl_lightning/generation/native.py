"""Sampling with the policy itself, for causal language models with plain attention."""

from __future__ import annotations

import contextlib
import logging
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rl_lightning.errors import UserError
from rl_lightning.generation.base import Finished, Generator, Progress, Request, Responses
from rl_lightning.generation.blocked import blocked_weights
from rl_lightning.generation.kept import Kept
from rl_lightning.generation.loop import Batch, Decoding
from rl_lightning.generation.options import Sampling
from rl_lightning.generation.sampling import draw
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
        max_tokens: prompt and response tokens that the cache has room for. It bounds memory and changes no response: as many
            responses are sampled side by side as fit.
        max_rows: responses sampled side by side; no bound but `max_tokens` if null.
        bf16: multiply in bfloat16, whatever the precision of training. It is faster where the processor has instructions for it.
            The log-probabilities then differ from the trainer's, and online algorithms correct for that.
    """

    def __init__(self, max_tokens: int = 65536, max_rows: int | None = None, bf16: bool = False) -> None:
        for name, value in (("max_tokens", max_tokens), ("max_rows", max_rows)):
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, not {value}")
        self.max_tokens = max_tokens
        self.max_rows = max_rows
        self.bf16 = bf16
        if bf16:
            self.samples_from_copy = True
        self._work: dict[str, float] = {}
        self._kept: Kept | None = None
        self._told: set[type] = set()

    def metrics(self) -> dict[str, float]:
        """Return what was done since the last call: `steps` decoding steps, `rows` tokens read in them, `seen` cached columns that
        attention read in them, and `prefill_rows` prompt tokens read before them, each as `generation/NAME`."""
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
        capacity, rows = request.longest_row, len(request.streams)
        reason = _unlike_what_slots_hold(model, capacity)
        if reason is not None:
            return self._through_transformers(reason, model, request, progress)
        if capacity > self.max_tokens:
            raise UserError(
                f"NativeGenerator.max_tokens={self.max_tokens} has no room for one response: the longest prompt and "
                f"max_new_tokens={request.sampling.max_new_tokens} make {capacity} tokens: raise "
                "max_tokens, or shorten one of them"
            )
        most = min(self.max_tokens // capacity, self.max_rows or rows, rows)
        # Where responses begin anew, nothing of earlier ones is of use: the weights may have changed since.
        before = self._kept if any(len(stream) > 2 for stream in request.streams) else None
        held = 0 if before is None else before.held
        self._kept = Kept(self.max_tokens - most * capacity - held) if request.goes_on else None
        run = Decoding(self.draw, cast(PreTrainedModel, model), request, most, before, self._kept)
        batch = Batch.empty(request, next(model.parameters()).device)
        done = 0
        with self._precision(batch.ids.device), blocked_weights(model, most):
            for ended in run.to_the_end(batch):
                done += len(ended)
                if finished is not None:
                    for row in ended:
                        finished(row, batch.ids[row, : int(batch.lengths[row])].tolist())
                if progress is not None:
                    progress(done, rows)
        for name, count in run.work.items():
            self._work[f"work/{name}"] = Sum(self._work.get(f"work/{name}", 0) + count)
        return batch.responses(request)

    def _precision(self, device: torch.device) -> contextlib.AbstractContextManager[None]:
        return torch.autocast(device.type, torch.bfloat16) if self.bf16 else contextlib.nullcontext()

    def _through_transformers(
        self, reason: str, model: nn.Module, request: Request, progress: Progress | None
    ) -> Responses:
        """Sample a model that slots cannot hold, and warn once for each class of model."""
        if type(model) not in self._told:
            self._told.add(type(model))
            log.warning("%s %s: sampled by its own generate, which is slower", type(model).__name__, reason)
        rows = max(1, self.max_tokens // request.longest_row)
        other = TransformersGenerator(min(rows, self.max_rows or rows))
        with self._precision(next(model.parameters()).device):
            return other.generate(model, request, progress)


def _unlike_what_slots_hold(model: nn.Module, capacity: int) -> str | None:
    """Return why a model cannot be sampled in slots of so many tokens; None if it can."""
    reason = unlike_plain_attention(model, capacity)
    if reason is None and str(cast(PreTrainedModel, model).config._attn_implementation).startswith("flash"):
        return "takes no mask of its own under flash attention"
    return reason

"""Sampling through the unchanged forward pass of any causal language model of transformers that keeps a cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import Cache

from rl_lightning.errors import UserError
from rl_lightning.generation.base import Generator, Progress, Responses, Sampling, Stream
from rl_lightning.generation.sampling import draw, uniforms
from rl_lightning.models.forward import last_logits, position_ids
from rl_lightning.types import pad_left

#: Finished rows leave the batch when at most this share of its rows is still running: copying the cache costs about
#: as much as a few steps of the rows that it drops.
_COMPACT_BELOW = 0.75


class NativeGenerator(Generator):
    """Samples with the policy itself: no copy of the weights, no second set of kernels.

    The prompt of a group is read once and its cache repeated for every sample; rows that have stopped leave the batch.

    Args:
        max_rows: responses sampled side by side; more are done in turns. Bounds memory, changes no response.
    """

    def __init__(self, max_rows: int = 512) -> None:
        if max_rows < 1:
            raise UserError(f"max_rows must be at least 1, not {max_rows}")
        self.max_rows = max_rows

    @torch.no_grad()
    def generate(
        self,
        model: nn.Module,
        prompts: Sequence[Sequence[int]],
        streams: Sequence[Stream],
        sampling: Sampling,
        *,
        stop_ids: frozenset[int],
        pad_id: int,
        progress: Progress | None = None,
    ) -> Responses:
        """See `Generator.generate`.

        Raises:
            UserError: if the model keeps no cache of transformers' own kind.
        """
        device = next(model.parameters()).device
        samples = len(streams) // len(prompts)
        prompt_ids, prompt_mask = (part.to(device) for part in pad_left(prompts, pad_id))
        numbers = uniforms(streams, sampling.max_new_tokens)
        stops = torch.tensor(sorted(stop_ids), device=device)
        batch = _Batch.empty(len(streams), sampling.max_new_tokens, pad_id, numbers, stops)
        done = 0
        for rows in _turns(len(prompts), samples, self.max_rows):
            first, last = rows.start // samples, -(-rows.stop // samples)
            repeats = torch.arange(rows.start, rows.stop, device=device) // samples - first
            for finished in batch.run(model, prompt_ids[first:last], prompt_mask[first:last], repeats, rows, sampling):
                if progress is not None:
                    progress(done + finished, len(streams))
            done += rows.stop - rows.start
            if progress is not None:  # what the cap has ended is finished too
                progress(done, len(streams))
        return batch.responses(
            prompt_ids.repeat_interleave(samples, 0), prompt_mask.repeat_interleave(samples, 0), pad_id
        )


def _turns(prompts: int, samples: int, max_rows: int) -> Iterator[slice]:
    """Cut prompts × samples rows into turns of at most `max_rows`, keeping groups whole where they fit."""
    total = prompts * samples
    step = max(1, max_rows // samples) * samples if samples <= max_rows else max_rows
    for start in range(0, total, step):
        yield slice(start, min(total, start + step))


@dataclass
class _Batch:
    """All responses of one call, filled in column by column."""

    ids: Tensor
    logprobs: Tensor
    lengths: Tensor
    stopped: Tensor
    uniforms: Tensor
    stops: Tensor

    @classmethod
    def empty(cls, rows: int, columns: int, pad_id: int, numbers: Tensor, stops: Tensor) -> _Batch:
        device = stops.device
        return cls(
            ids=torch.full((rows, columns), pad_id, device=device),
            logprobs=torch.zeros(rows, columns, dtype=torch.float32, device=device),
            lengths=torch.zeros(rows, dtype=torch.long, device=device),
            stopped=torch.zeros(rows, dtype=torch.bool, device=device),
            uniforms=numbers.to(device),
            stops=stops,
        )

    def run(
        self, model: nn.Module, ids: Tensor, mask: Tensor, repeats: Tensor, rows: slice, sampling: Sampling
    ) -> Iterator[int]:
        """Sample the given rows to their end; yields how many of them have finished, once a column."""
        logits, cache = last_logits(model, ids, mask, position_ids(mask), 1, use_cache=True)
        if not isinstance(cache, Cache):
            raise UserError(
                f"NativeGenerator cannot sample from {type(model).__name__}, which keeps no cache that rows could be "
                "dropped from: set data.init_args.generator to TransformersGenerator"
            )
        logits, mask = logits[repeats, -1], mask[repeats]
        # Unlike `batch_select_indices`, this one knows the states of recurrent and convolutional layers too.
        cache.reorder_cache(repeats)  # type: ignore[arg-type]
        active = torch.arange(rows.start, rows.stop, device=ids.device)
        positions = mask.sum(1, keepdim=True)
        for column in range(sampling.max_new_tokens):
            tokens, logprobs = draw(logits, self.uniforms[active, column], sampling)
            running = self._write(active, column, tokens, logprobs)
            left = int(running.sum())
            yield rows.stop - rows.start - left
            if left == 0 or column + 1 == sampling.max_new_tokens:
                return
            if left <= _COMPACT_BELOW * len(active):
                keep = running.nonzero()[:, 0]
                active, tokens, mask, positions = active[keep], tokens[keep], mask[keep], positions[keep]
                cache.reorder_cache(keep)  # type: ignore[arg-type]
            mask = torch.nn.functional.pad(mask, (0, 1), value=True)
            step, cache = last_logits(model, tokens[:, None], mask, positions, 1, past_key_values=cache, use_cache=True)
            logits, positions = step[:, -1], positions + 1

    def _write(self, active: Tensor, column: int, tokens: Tensor, logprobs: Tensor) -> Tensor:
        """Store a column for the rows that had not stopped, and return which of the active rows go on."""
        live = ~self.stopped[active]
        rows = active[live]
        self.ids[rows, column] = tokens[live]
        self.logprobs[rows, column] = logprobs[live]
        self.lengths[rows] += 1
        self.stopped[rows] = torch.isin(tokens[live], self.stops)
        return ~self.stopped[active]

    def responses(self, prompt_ids: Tensor, prompt_mask: Tensor, pad_id: int) -> Responses:
        width = int(self.lengths.max())
        return Responses(
            prompt_ids=prompt_ids,
            prompt_mask=prompt_mask,
            response_ids=self.ids[:, :width],
            response_mask=torch.arange(width, device=self.ids.device) < self.lengths[:, None],
            logprobs=self.logprobs[:, :width],
            truncated=~self.stopped,
        )

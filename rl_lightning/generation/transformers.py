"""Sampling through `model.generate` of transformers, for models that `NativeGenerator` cannot sample."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from rl_lightning.generation.base import Finished, Generator, Progress, Request, Responses
from rl_lightning.generation.sampling import check_drawn, draw, uniforms
from rl_lightning.padding import pad_left, pad_right
from rl_lightning.stopping import StopStrings
from rl_lightning.travel import carried


class TransformersGenerator(Generator):
    """Samples with the policy's own `generate`, so any architecture will do.

    It draws the same tokens as `NativeGenerator`, from the same random streams, up to rounding. It is slower: it reads a prompt once for every
    response, and computes on rows that have stopped until all of them have.

    Args:
        max_rows: responses sampled side by side; more are sampled in turns. It bounds memory, and in float32 changes no response.
    """

    def __init__(self, max_rows: int = 512) -> None:
        self.max_rows = max_rows

    @torch.no_grad()
    def generate(
        self,
        model: nn.Module,
        request: Request,
        progress: Progress | None = None,
        finished: Finished | None = None,
    ) -> Responses:
        """Sample turn after turn, of at most `max_rows` responses. `progress` is called after every token, `finished` is not.

        Raises:
            UserError: if logits are not finite.
        """
        device = next(model.parameters()).device
        prompts, rows = [prompt.input_ids for prompt in request.row_prompts], len(request.streams)
        numbers = uniforms(request.streams, max(request.row_caps)).to(device)
        caps = torch.tensor(request.row_caps, device=device)
        ids: list[list[int]] = []
        logprobs: list[Tensor] = []
        stopped: list[Tensor] = []
        for start in range(0, rows, self.max_rows):
            turn = slice(start, min(rows, start + self.max_rows))
            # (turn, P), as wide as the longest prompt of this turn: columns of padding alone would only cost time.
            prompt_ids, prompt_mask = (part.to(device) for part in pad_left(prompts[turn], request.pad_id))
            drawing = _Draw(request, numbers[turn], caps[turn], prompt_ids.shape[1])
            if progress is not None:
                drawing.report(progress, start, rows)
            _generate(cast(GenerationMixin, model), request, prompt_ids, prompt_mask, drawing)
            turn_ids, turn_logprobs = torch.stack(drawing.ids, 1), torch.stack(drawing.logprobs, 1)
            mask = torch.arange(turn_ids.shape[1], device=device) < drawing.lengths[:, None]
            turn_ids, turn_logprobs, mask, ended = carried([turn_ids, turn_logprobs, mask, drawing.stopped], "cpu")
            stopped.append(ended)
            check_drawn(turn_logprobs[mask])
            ids += [row[kept].tolist() for row, kept in zip(turn_ids, mask, strict=True)]
            logprobs += [row[kept] for row, kept in zip(turn_logprobs, mask, strict=True)]
        prompt_ids, prompt_mask = pad_left(prompts, request.pad_id)
        response_ids, response_mask = pad_right(ids, request.pad_id)
        return Responses(
            prompt_ids=prompt_ids,
            prompt_mask=prompt_mask,
            response_ids=response_ids,
            response_mask=response_mask,
            logprobs=torch.nn.utils.rnn.pad_sequence(logprobs, batch_first=True),
            truncated=~torch.cat(stopped),
        )


class _Draw(LogitsProcessor):
    """Draws the tokens, each row with its own random numbers, and leaves `generate` one token a row to choose from.

    Args:
        request: how to sample.
        numbers: (B, C), uniform in [0, 1); B rows of this turn.
        caps: (B,) long; tokens that each response may have, at most C.
        prompt_columns: width P of the prompts.
    """

    def __init__(self, request: Request, numbers: Tensor, caps: Tensor, prompt_columns: int) -> None:
        self.numbers = numbers
        self.caps = caps
        self.sampling = request.sampling
        self.strings = request.stop_strings
        self.prompt_columns = prompt_columns
        self.stops = torch.tensor(sorted(request.stop_ids), device=numbers.device)
        self.stopped = torch.zeros(len(numbers), dtype=torch.bool, device=numbers.device)
        #: (B,) bool; stopped, or as long as it may be.
        self.ended = self.stopped.clone()
        #: (B,) long; tokens of each response, the one that stopped it included.
        self.lengths = torch.zeros(len(numbers), dtype=torch.long, device=numbers.device)
        #: What was drawn, column by column, for finished rows too: (B,) each.
        self.ids: list[Tensor] = []
        self.logprobs: list[Tensor] = []
        self._progress: tuple[Progress, int, int] | None = None

    def report(self, progress: Progress, done: int, total: int) -> None:
        """Call `progress` after every column, with `done` and the rows of this turn that have finished, out of `total`."""
        self._progress = progress, done, total

    def __call__(self, input_ids: Tensor, scores: Tensor) -> torch.FloatTensor:
        """Return scores that allow one token a row.

        Args:
            input_ids: (B, P + column) long.
            scores: (B, V), the model's logits: no processor comes before this one.
        """
        column = input_ids.shape[1] - self.prompt_columns
        tokens, logprobs = draw(scores, self.numbers[:, column], self.sampling)
        self.ids.append(tokens)
        self.logprobs.append(logprobs)
        running = ~self.ended
        self.lengths += running.long()
        self.stopped |= torch.isin(tokens, self.stops) & running
        if self.strings is not None:
            self._find_strings(self.strings, running & ~self.stopped)
        self.ended = self.stopped | (self.lengths >= self.caps)
        if self._progress is not None:
            progress, done, total = self._progress
            progress(done + int(self.ended.sum()), total)
        only = torch.full_like(scores, -torch.inf).scatter_(1, tokens.unsqueeze(1), 0)
        return cast(torch.FloatTensor, only)

    def _find_strings(self, strings: StopStrings, asked: Tensor) -> None:
        """Set `stopped` for those of the rows asked for, (B,) bool, whose newest token completes a stop string."""
        places = asked.nonzero()[:, 0]
        rows = torch.stack(self.ids[-strings.window :], 1)[places].tolist()
        found = [strings.completes(ids) for ids in rows]
        self.stopped[places] = torch.tensor(found, dtype=torch.bool, device=self.stopped.device)


class _Stopped(StoppingCriteria):
    """Tells `generate` which rows have ended.

    Args:
        drawing: keeps count of them.
    """

    def __init__(self, drawing: _Draw) -> None:
        self.drawing = drawing

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: object) -> torch.BoolTensor:
        """Return (B,) bool."""
        return cast(torch.BoolTensor, self.drawing.ended)


def _generate(policy: GenerationMixin, request: Request, ids: Tensor, mask: Tensor, drawing: _Draw) -> None:
    """Have a model's own `generate` go on with prompts, (B, P) each, until all responses have ended; `drawing` keeps them."""
    settings = GenerationConfig(
        max_new_tokens=max(request.row_caps),
        do_sample=False,
        eos_token_id=sorted(request.stop_ids) or None,
        pad_token_id=request.pad_id,
    )
    with _neutral_defaults(policy):
        policy.generate(
            input_ids=ids,
            attention_mask=mask.long(),
            generation_config=settings,
            logits_processor=LogitsProcessorList([drawing]),
            stopping_criteria=StoppingCriteriaList([_Stopped(drawing)]),
        )


@contextlib.contextmanager
def _neutral_defaults(model: GenerationMixin) -> Iterator[None]:
    """Set the model's `generation_config` aside.

    `generate` takes every setting that its caller left at None from there, and several (`suppress_tokens`,
    `forced_eos_token_id`, ...) can be switched off by None alone.
    """
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own

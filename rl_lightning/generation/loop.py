"""The decoding loop of `NativeGenerator`: responses grow token by token, side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rl_lightning.generation.base import Request, Responses
from rl_lightning.generation.decoding import decoding_step
from rl_lightning.generation.kept import Kept, Layers
from rl_lightning.generation.options import Sampling
from rl_lightning.generation.reading import Reading
from rl_lightning.generation.sampling import check_drawn, uniforms
from rl_lightning.generation.slots import Slots
from rl_lightning.padding import pad_left
from rl_lightning.stopping import StopStrings
from rl_lightning.travel import carried

#: New prompts are read once this share of the slots is free: a pass over few prompts costs nearly as much as over many.
REFILL_AT = 1 / 8

#: Draws the next token of n responses from logits (n, V): see `NativeGenerator.draw`.
Draw = Callable[[Tensor, Tensor, Sampling, Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass
class Batch:
    """The B responses of one request, filled in token by token; C columns. One more row may follow them that takes no token.

    Args:
        ids, logprobs: (B, C); filled up to each response's length.
        lengths: (B,) long; tokens that each response has so far.
        stopped: (B,) bool; its last token ended it.
        caps: (B,) long; tokens that each response may have, at most C.
        uniforms: (B, C) in [0, 1); the token in column c of response b is drawn with number [b, c].
        stops: (S,) long; ids of stop tokens.
        strings: stop strings, if there are any.
    """

    ids: Tensor
    logprobs: Tensor
    lengths: Tensor
    stopped: Tensor
    caps: Tensor
    uniforms: Tensor
    stops: Tensor
    strings: StopStrings | None

    @classmethod
    def empty(cls, request: Request, device: torch.device, spare: bool = False) -> Batch:
        """Return a table without a token yet, with the random numbers of every response; with `spare`, of a response that may have none
        too, the last one, which slots that nobody is in can be given to."""
        caps, columns = torch.tensor(request.row_caps), max(request.row_caps)
        numbers, stops = uniforms(request.streams, columns), torch.tensor(sorted(request.stop_ids))
        if spare:
            caps, numbers = torch.cat([caps, caps.new_zeros(1)]), torch.cat([numbers, numbers.new_zeros(1, columns)])
        rows, known = len(caps), carried([caps, numbers, stops], device)
        return cls(
            ids=torch.full((rows, columns), request.pad_id, device=device),
            logprobs=torch.zeros(rows, columns, dtype=torch.float32, device=device),
            lengths=torch.zeros(rows, dtype=torch.long, device=device),
            stopped=torch.zeros(rows, dtype=torch.bool, device=device),
            caps=known[0],
            uniforms=known[1],
            stops=known[2],
            strings=request.stop_strings,
        )

    def write(self, rows: Tensor, tokens: Tensor, logprobs: Tensor) -> list[bool]:
        """Store the next token of some responses.

        Args:
            rows: (n,) long; which responses.
            tokens, logprobs: (n,).

        Returns:
            For each of the n, whether it goes on.
        """
        columns = self.lengths[rows]
        self.ids[rows, columns] = tokens
        self.logprobs[rows, columns] = logprobs
        self.lengths[rows] = columns + 1
        stopped = torch.isin(tokens, self.stops)
        if self.strings is not None:
            stopped |= self._completed(rows, self.strings)
        self.stopped[rows] = stopped
        going: list[bool] = (~stopped & (columns + 1 < self.caps[rows])).tolist()
        return going

    def _completed(self, rows: Tensor, strings: StopStrings) -> Tensor:
        """Return whether the newest token of each response completes a stop string, (n,) bool."""
        # The last `window` tokens of each response, (n, window); those of shorter ones are followed by padding, cut off below.
        first = (self.lengths[rows] - strings.window).clamp(min=0)
        columns = first[:, None] + torch.arange(strings.window, device=rows.device)
        newest = self.ids[rows[:, None], columns.clamp(max=self.ids.shape[1] - 1)].tolist()
        sizes = (self.lengths[rows] - first).tolist()
        found = [strings.completes(ids[:size]) for ids, size in zip(newest, sizes, strict=True)]
        return torch.tensor(found, dtype=torch.bool, device=rows.device)

    def responses(self, request: Request) -> Responses:
        """Return what was sampled, cut to the longest response.

        Raises:
            UserError: if logits were not finite.
        """
        rows = len(request.streams)
        tables = [self.ids, self.logprobs, self.lengths, self.stopped]
        ids, logprobs, lengths, stopped = carried([one[:rows] for one in tables], "cpu")
        check_drawn(logprobs)
        prompts = pad_left([prompt.input_ids for prompt in request.prompts], request.pad_id)
        prompt_ids, prompt_mask = (part.repeat_interleave(request.group_size, 0) for part in prompts)
        width = int(lengths.max())
        return Responses(
            prompt_ids=prompt_ids,
            prompt_mask=prompt_mask,
            response_ids=ids[:, :width],
            response_mask=torch.arange(width) < lengths[:, None],
            logprobs=logprobs[:, :width],
            truncated=~stopped,
        )


@dataclass
class Decoding:
    """The decoding loop of one request, with `most` slots.

    Two things alternate until no response is left: prompts are read and the first token of their responses is drawn from the
    prompt's logits (`Reading`); or every response in a slot gets its next token (`decoding_step`).

        active   [7, 2, 5]     responses by slot
        tokens   (3,)          the newest token of each, not read yet

    Args:
        draw: see `NativeGenerator.draw`.
        model, request: see `Generator.generate`.
        most: responses side by side.
        capacity: tokens of each, with its prompt and padding.
        before: what is kept of the responses from their turns before; None if nothing is.
        kept: takes what is to be kept for their next turns; None if nothing is.
        work: counters; see `NativeGenerator.metrics`.
    """

    draw: Draw
    model: PreTrainedModel
    request: Request
    most: int
    capacity: int
    before: Kept | None = None
    kept: Kept | None = None
    work: dict[str, int] = field(default_factory=lambda: {"steps": 0, "rows": 0, "prefill_rows": 0, "seen": 0})

    def __post_init__(self) -> None:
        self.prompts = Reading(self.model, self.request, self.capacity, self.before, self.work)

    def to_the_end(self, batch: Batch) -> Iterator[list[int]]:
        """Sample until every response has ended; yield, step by step, the numbers of those that have."""
        slots: Slots | None = None
        active: list[int] = []
        tokens = batch.lengths[:0]
        step = decoding_step(self.model)
        while active or self.prompts.are_left:
            free = self.most - len(active)
            if not active or (self.prompts.are_left and free >= max(1, self.most * REFILL_AT)):
                # Responses that get a slot now; each draws its first token from the logits of its own prompt.
                part, chosen = self.prompts.take(free)
                owner = torch.tensor([prompt for _, prompt in chosen], device=batch.ids.device)
                rows = [row for row, _ in chosen]
                drawn, going = self._draw(batch, rows, part.logits[owner])
                slots = slots or Slots(self.most, self.capacity, batch.ids.device, part.layers[0][0].dtype)
                # A response that ends with its first token takes no slot.
                keep = torch.tensor(going, device=batch.ids.device)
                slots.admit(part.layers, part.mask, owner[keep])
                for (row, prompt), goes_on in zip(chosen, going, strict=True):
                    if not goes_on and self.kept is not None:
                        columns = part.mask[prompt].nonzero()[:, 0]
                        self._keep(batch, row, [(k[prompt, :, columns], v[prompt, :, columns]) for k, v in part.layers])
                tokens = torch.cat([tokens, drawn[keep]])
                active += [row for row, goes_on in zip(rows, going, strict=True) if goes_on]
                yield [row for row, goes_on in zip(rows, going, strict=True) if not goes_on]
                continue
            assert slots is not None
            logits = step(slots, tokens)
            slots.advance()
            self.work["steps"] += 1
            self.work["rows"] += len(active)
            self.work["seen"] += slots.seen
            tokens, going = self._draw(batch, active, logits)
            yield [row for row, goes_on in zip(active, going, strict=True) if not goes_on]
            if not all(going):
                for place, (row, goes_on) in enumerate(zip(active, going, strict=True)):
                    if not goes_on and self.kept is not None:
                        self._keep(batch, row, slots.row(place))
                # Slots move rows from the end into holes; `active` and `tokens` follow in the same order.
                order = slots.keep(going)
                active = [active[row] for row in order]
                tokens = tokens[torch.tensor(order, dtype=torch.long, device=tokens.device)]

    def _keep(self, batch: Batch, row: int, layers: Layers) -> None:
        """Keep the cache of a response that has ended; its last token has not been read."""
        assert self.kept is not None
        prompt = self.request.prompts[row // self.request.group_size].input_ids
        self.kept.put(self.request.streams[row], [*prompt, *self.said(batch, row)[:-1]], layers)

    def said(self, batch: Batch, row: int) -> list[int]:
        """Return the tokens of a response."""
        said: list[int] = batch.ids[row, : int(batch.lengths[row])].tolist()
        return said

    def _draw(self, batch: Batch, rows: list[int], logits: Tensor) -> tuple[Tensor, list[bool]]:
        """Draw and store the next token of n responses from logits (n, V); return the tokens (n,) and which responses go on."""
        index = torch.tensor(rows, device=logits.device)
        columns = batch.lengths[index]
        uniform = batch.uniforms[index, columns]
        tokens, logprobs = self.draw(logits, uniform, self.request.sampling, index, columns)
        return tokens, batch.write(index, tokens, logprobs)

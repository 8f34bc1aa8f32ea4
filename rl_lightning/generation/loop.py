"""The decoding loop of `NativeGenerator`: prompts are read, and the responses to them grow token by token, side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, cast

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from rl_lightning.generation.base import Request, Responses
from rl_lightning.generation.decoding import decoding_step
from rl_lightning.generation.kept import Kept, Layers, Past, closed_up, side_by_side
from rl_lightning.generation.options import Sampling
from rl_lightning.generation.sampling import check_drawn, uniforms
from rl_lightning.generation.slots import Slots, narrow
from rl_lightning.models.families import accepts
from rl_lightning.models.forward import padded
from rl_lightning.padding import pad_left
from rl_lightning.stopping import StopStrings
from rl_lightning.travel import carried

#: Prompt tokens read in one pass.
_PREFILL_TOKENS = 8192

#: New prompts are read once this share of the slots is free: a pass over few prompts costs nearly as much as over many.
REFILL_AT = 1 / 8

#: Draws the next token of n responses from logits (n, V): see `NativeGenerator.draw`.
Draw = Callable[[Tensor, Tensor, Sampling, Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass
class Batch:
    """The B responses of one request, filled in token by token; C columns.

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
    def empty(cls, request: Request, device: torch.device) -> Batch:
        """Return a table without a token yet, with the random numbers of every response."""
        rows, columns = len(request.streams), max(request.row_caps)
        stops = torch.tensor(sorted(request.stop_ids))
        known = carried([torch.tensor(request.row_caps), uniforms(request.streams, columns), stops], device)
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
        ids, logprobs, lengths, stopped = carried([self.ids, self.logprobs, self.lengths, self.stopped], "cpu")
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


class _FirstRead(DynamicLayer):
    """Begins as what it is first given; transformers' own makes an empty tensor on the host and moves it, for every layer."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Set what new keys and values, (N, heads, P, D) each, are appended to: none."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        self.is_initialized = True


class _Filled(Protocol):
    """A layer of transformers' cache that holds keys and values, as every layer does after a pass."""

    keys: Tensor
    values: Tensor


@dataclass
class Prefilled:
    """N prompts that have been read, and responses to them that wait for a slot.

    Args:
        layers: keys and values, (N, heads, P, D) each, layer by layer.
        mask: (N, P) bool.
        logits: (N, V) after the last token of each prompt.
        waiting: (number of the response in the request, row of its prompt in these tensors), in the order of their turns.
    """

    layers: list[tuple[Tensor, Tensor]]
    mask: Tensor
    logits: Tensor
    waiting: list[tuple[int, int]]


@dataclass
class Decoding:
    """The decoding loop of one request, with `most` slots.

    Two things alternate until no response is left: prompts are read and the first token of their responses is drawn from the
    prompt's logits (`_prefill`); or every response in a slot gets its next token (`decoding_step`).

        active   [7, 2, 5]     responses by slot
        tokens   (3,)          the newest token of each, not read yet

    Args:
        draw: see `NativeGenerator.draw`.
        model, request: see `Generator.generate`.
        most: responses side by side.
        before: what is kept of the responses from their turns before; None if nothing is.
        kept: takes what is to be kept for their next turns; None if nothing is.
        work: counters; see `NativeGenerator.metrics`.
    """

    draw: Draw
    model: PreTrainedModel
    request: Request
    most: int
    before: Kept | None = None
    kept: Kept | None = None
    work: dict[str, int] = field(default_factory=lambda: {"steps": 0, "rows": 0, "prefill_rows": 0, "seen": 0})
    _next: int = 0
    _prefilled: Prefilled | None = None

    def to_the_end(self, batch: Batch) -> Iterator[list[int]]:
        """Sample until every response has ended; yield, step by step, the numbers of those that have."""
        slots: Slots | None = None
        active: list[int] = []
        tokens = batch.lengths[:0]
        step = decoding_step(self.model)
        while active or self._is_waiting:
            free = self.most - len(active)
            if not active or (self._is_waiting and free >= max(1, self.most * REFILL_AT)):
                part = self._prefill(free)
                # Responses that get a slot now; each draws its first token from the logits of its own prompt.
                chosen, part.waiting = part.waiting[:free], part.waiting[free:]
                self._prefilled = part if part.waiting else None
                owner = torch.tensor([prompt for _, prompt in chosen], device=batch.ids.device)
                rows = [row for row, _ in chosen]
                drawn, going = self._draw(batch, rows, part.logits[owner])
                slots = slots or Slots(self.most, self.request.longest_row, batch.ids.device, part.layers[0][0].dtype)
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

    @property
    def _is_waiting(self) -> bool:
        """Whether a response has no slot yet."""
        return self._prefilled is not None or self._next < len(self.request.prompts)

    def _draw(self, batch: Batch, rows: list[int], logits: Tensor) -> tuple[Tensor, list[bool]]:
        """Draw and store the next token of n responses from logits (n, V); return the tokens (n,) and which responses go on."""
        index = torch.tensor(rows, device=logits.device)
        columns = batch.lengths[index]
        uniform = batch.uniforms[index, columns]
        tokens, logprobs = self.draw(logits, uniform, self.request.sampling, index, columns)
        return tokens, batch.write(index, tokens, logprobs)

    def _prefill(self, free: int) -> Prefilled:
        """Return prompts that have been read and have responses without a slot: those of the last call, or the next ones.

        Args:
            free: free slots; prompts are read until their responses fill them.
        """
        if self._prefilled is not None:
            return self._prefilled
        first, width, samples = self._next, 0, self.request.group_size
        prompts, pasts = self.request.prompts, [self._past(self._next)]
        while self._next < len(prompts) and (self._next - first) * samples < free:
            past = self._past(self._next)
            width = max(width, len(prompts[self._next].input_ids) - (0 if past is None else len(past.ids)))
            if self._next > first and (
                (self._next + 1 - first) * width > _PREFILL_TOKENS or (past is None) != (pasts[0] is None)
            ):
                break
            pasts[self._next - first :] = [past]
            self._next += 1
        chosen = [prompt.input_ids for prompt in prompts[first : self._next]]
        layers, mask, logits = self._read(chosen, [past for past in pasts if past is not None])
        waiting = [
            ((first + prompt) * samples + sample, prompt) for prompt in range(len(chosen)) for sample in range(samples)
        ]
        return Prefilled(layers, mask, logits, waiting)

    def _past(self, prompt: int) -> Past | None:
        """Return what is kept of the response that a prompt goes on with; there is one a prompt."""
        if self.before is None or self.request.group_size != 1:
            return None
        return self.before.of(self.request.streams[prompt], self.request.prompts[prompt].input_ids)

    def _read(self, prompts: Sequence[list[int]], pasts: Sequence[Past]) -> tuple[Layers, Tensor, Tensor]:
        """Read prompts behind what is kept of each.

        Args:
            prompts: their tokens.
            pasts: one a prompt, or none at all.

        Returns:
            Keys and values, (N, heads, P, D) each, layer by layer; (N, P) bool, real columns, aligned at the right; logits (N, V) after
            the last token of each prompt.
        """
        new = [ids[len(past.ids) :] for ids, past in zip(prompts, pasts, strict=True)] if pasts else prompts
        # (N, P) with P the longest of these prompts; `logits_to_keep` spares the head all columns but the last.
        ids, mask = carried(pad_left(new, self.request.pad_id), next(self.model.parameters()).device)
        self.work["prefill_rows"] += sum(map(len, new))
        keep = {"logits_to_keep": 1} if accepts(self.model, "logits_to_keep") else {}
        cache = DynamicCache(config=self.model.config)
        cache.layers = [_FirstRead() if type(layer) is DynamicLayer else layer for layer in cache.layers]
        if pasts:
            before, known = side_by_side(pasts)
            for number, (keys, values) in enumerate(before):
                cache.update(keys, values, number)
            mask = torch.cat([known, mask], 1)
        given = padded(self.model, ids, mask)
        if "position_ids" in given:  # those of the new columns
            given["position_ids"] = cast(Tensor, given["position_ids"])[:, -ids.shape[1] :]
        output = self.model(**given, **keep, past_key_values=cache, use_cache=True)
        layers = [(narrow(layer.keys), narrow(layer.values)) for layer in cast("list[_Filled]", cache.layers)]
        if pasts:
            layers, mask = closed_up(layers, mask)
        return layers, mask, output.logits[:, -1]

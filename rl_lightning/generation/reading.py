"""Prompts of a request are read, each once, and hand their keys and values to all responses to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from rl_lightning.generation.base import Request
from rl_lightning.generation.kept import Kept, Layers, Past, closed_up, side_by_side
from rl_lightning.generation.slots import narrow
from rl_lightning.models.families import accepts, cache_argument, narrowest_window
from rl_lightning.models.forward import padded
from rl_lightning.padding import pad_left
from rl_lightning.travel import carried

#: Prompt tokens read in one pass.
_TOKENS = 8192


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

    layers: Layers
    mask: Tensor
    logits: Tensor
    waiting: list[tuple[int, int]]


@dataclass
class Reading:
    """The prompts of one request, read in their order as slots become free.

    Args:
        model, request: see `Generator.generate`.
        capacity: tokens of a slot.
        before: what is kept of the responses that the prompts go on with; None if nothing is.
        work: counters; the prompt tokens that are read are added to its `prefill_rows`.
    """

    model: PreTrainedModel
    request: Request
    capacity: int
    before: Kept | None
    work: dict[str, int]
    _next: int = 0
    _prefilled: Prefilled | None = None

    @property
    def are_left(self) -> bool:
        """Whether a response has no slot yet."""
        return self._prefilled is not None or self._next < len(self.request.prompts)

    def take(self, free: int) -> tuple[Prefilled, list[tuple[int, int]]]:
        """Return responses for free slots, as in `Prefilled.waiting`, at most so many, and what has been read of their prompts."""
        part = self._prefilled or self._prefill(free)
        chosen, part.waiting = part.waiting[:free], part.waiting[free:]
        self._prefilled = part if part.waiting else None
        return part, chosen

    def _prefill(self, free: int) -> Prefilled:
        """Read the next prompts, until their responses fill the free slots."""
        first, samples = self._next, self.request.group_size
        prompts, caps = self.request.prompts, self.request.row_caps[::samples]
        window, pasts = narrowest_window(self.model), list[Past | None]()
        # The longest of these: prompt, what is kept of one, what is new of one, and response that may follow one.
        longest = known = width = cap = 0
        while self._next < len(prompts) and (self._next - first) * samples < free:
            past, length = self._past(self._next), len(prompts[self._next].input_ids)
            kept = 0 if past is None else len(past.ids)
            longest, known, width = max(longest, length), max(known, kept), max(width, length - kept)
            cap = max(cap, caps[self._next])
            if pasts and (
                (len(pasts) + 1) * width > _TOKENS
                or (past is None) != (pasts[0] is None)
                or longest + cap > self.capacity
                # What is kept and what is new is padded, each for itself, and a window counts padding.
                or known + width >= window
            ):
                break
            pasts.append(past)
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
        output = self.model(**given, **keep, **{cache_argument(self.model): cache}, use_cache=True)
        layers = [(narrow(layer.keys), narrow(layer.values)) for layer in cast("list[_Filled]", cache.layers)]
        if pasts:
            layers, mask = closed_up(layers, mask)
        return layers, mask, output.logits[:, -1]

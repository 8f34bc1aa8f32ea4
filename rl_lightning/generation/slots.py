"""Room for the keys and values of rows that are sampled side by side: written in place, given on when a row ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer


class Slots:
    """A cache of fixed size, of which the first rows are in use.

    Every row has its own beginning and end. A new token is written behind its row's end; a row that leaves gives its slot
    to the last one, which costs the copy of one row.

    Args:
        count: rows, at most.
        capacity: columns; the longest prompt and all new tokens.
        device, dtype: of the model's activations.
    """

    def __init__(self, count: int, capacity: int, device: torch.device, dtype: torch.dtype) -> None:
        self.count = count
        self.capacity = capacity
        self.used = 0
        #: What a row's next token sees: 0 there, and the lowest number elsewhere.
        self._hidden = torch.finfo(dtype).min
        self._bias = torch.full((count, 1, 1, capacity), self._hidden, dtype=dtype, device=device)
        #: How many tokens of a row came before its next one, and the column that it goes to; the latter on the host too.
        self._positions = torch.zeros(count, dtype=torch.long, device=device)
        self._ends = torch.zeros(count, dtype=torch.long, device=device)
        self._columns: list[int] = []
        self._rows = torch.arange(count, device=device)
        self.cache = Cache(layers=[])

    @property
    def seen(self) -> int:
        """How many columns a pass over the rows in use reads, padding included."""
        return self.used * max(self._columns, default=0)

    def admit(self, prompts: Sequence[tuple[Tensor, Tensor]], mask: Tensor, owner: Tensor) -> None:
        """Take in rows that begin with prompts read elsewhere.

        Args:
            prompts: keys and values, (G, heads, P, D) each, layer by layer.
            mask: (G, P) bool; padded left.
            owner: (n,) long; the prompt that each new row begins with.
        """
        if not self.cache.layers:
            self.cache.layers = [_SlotLayer(self, keys, values) for keys, values in prompts]
        new, width = slice(self.used, self.used + len(owner)), mask.shape[1]
        layers: Any = self.cache.layers
        for layer, (keys, values) in zip(layers, prompts, strict=True):
            layer.keys[new, :, :width] = keys[owner]
            layer.values[new, :, :width] = values[owner]
        self._bias[new] = self._hidden
        self._bias[new, 0, 0, :width].masked_fill_(mask[owner], 0)
        self._positions[new] = mask.sum(1)[owner]
        self._ends[new] = width
        self._columns += [width] * len(owner)
        self.used += len(owner)

    def keep(self, running: Sequence[bool]) -> list[int]:
        """Let the other rows go.

        Returns:
            For every row that is left, in its new order, which it was.
        """
        left = sum(running)
        holes = [row for row in range(left) if not running[row]]
        movers = [row for row in range(left, self.used) if running[row]]
        order = list(range(left))
        for hole, mover in zip(holes, movers, strict=True):
            order[hole] = mover
        if holes:
            width = max(self._columns)
            to, source = (torch.tensor(rows, device=self._rows.device) for rows in (holes, movers))
            layers: Any = self.cache.layers
            for table in [table for layer in layers for table in (layer.keys, layer.values)]:
                table[:, :, :width].index_copy_(0, to, table[:, :, :width].index_select(0, source))
            for state in (self._bias, self._positions, self._ends):
                state.index_copy_(0, to, state.index_select(0, source))
        self._columns = [self._columns[row] for row in order]
        self.used = left
        return order

    def read(self, tokens: Tensor) -> dict[str, Any]:
        """Return the arguments of a model's forward that reads the next token of every row in use.

        Args:
            tokens: (rows in use,) long.
        """
        rows = self._rows[: self.used]
        self._bias[rows, 0, 0, self._ends[rows]] = 0
        positions = self._positions[rows].unsqueeze(1)
        bias = self._bias[: self.used, :, :, : max(self._columns) + 1]
        return {"input_ids": tokens.unsqueeze(1), "position_ids": positions, "attention_mask": bias,
                "past_key_values": self.cache, "use_cache": True}  # fmt: skip

    def advance(self) -> None:
        """Move on after a forward pass: every row in use is a token longer."""
        self._positions[: self.used] += 1
        self._ends[: self.used] += 1
        self._columns = [column + 1 for column in self._columns]

    def write(self, layer: _SlotLayer, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store one token of every row in use in a layer; return what its attention reads."""
        width = max(self._columns) + 1
        if min(self._columns) + 1 == width:  # all rows are as long: a slice is cheaper to write than scattered places
            place: Any = (slice(self.used), slice(None), slice(width - 1, width))
            layer.keys[place], layer.values[place] = keys, values
        else:
            place = (self._rows[: self.used], slice(None), self._ends[: self.used])
            layer.keys[place], layer.values[place] = keys[:, :, 0], values[:, :, 0]
        return layer.keys[: self.used, :, :width], layer.values[: self.used, :, :width]


class _SlotLayer(DynamicLayer):
    """One layer's share of the slots, as transformers knows it.

    Args:
        slots: knows who is where.
        keys, values: (rows, heads, columns, D) of some prompts, for their shapes.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, slots: Slots, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.slots = slots
        self.keys, self.values = (
            one.new_zeros(slots.count, one.shape[1], slots.capacity, one.shape[3]) for one in (keys, values)
        )
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store the newest token of every row; return all keys and values in use."""
        return self.slots.write(self, key_states, value_states)

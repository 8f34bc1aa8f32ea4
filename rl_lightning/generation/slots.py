"""A key-value cache of fixed size for responses that are sampled side by side and end at different times."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from rl_lightning.travel import carried


class StepInputs(TypedDict):
    """The arguments of a model's forward pass over the next token of n rows, beside its cache.

    Args:
        input_ids, position_ids: (n, 1) long.
        attention_mask: (n, 1, 1, columns), added to attention scores.
    """

    input_ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor


class Slots:
    """A cache of `count` × `capacity` tokens, of which the first `used` rows are in use.

    A row begins with the padding and the prompt that it was admitted with, and grows to the right. Rows differ in length:

        column     0 1 2 3 4 5 6 7
        row 0      . p p p r r r _        . padding, masked by `_bias`
        row 1      p p p p r _ _ _        p prompt, r response
        row 2      . . p _ _ _ _ _        _ not written; the next token goes into the first one

    When row 0 ends, row 2 is copied into its place and `used` falls to 2, so the rows in use stay together and a pass over
    them is a slice.

    Args:
        count: rows, at most.
        capacity: columns; the longest prompt and all new tokens.
        device, dtype: of the model's activations.
    """

    def __init__(self, count: int, capacity: int, device: torch.device, dtype: torch.dtype) -> None:
        self.count = count
        self.capacity = capacity
        self.used = 0
        # (count, 1, 1, capacity), added to attention scores: 0 in columns that a row's next token sees, else the lowest number.
        self._hidden = torch.finfo(dtype).min
        self._bias = torch.full((count, 1, 1, capacity), self._hidden, dtype=dtype, device=device)
        # Of each row's next token: its position, that is the tokens before it without padding; and its column, which padding
        # counts for. `_columns` is `_ends` of the rows in use on the host, so that no step waits for the device.
        self._positions = torch.zeros(count, dtype=torch.long, device=device)
        self._ends = torch.zeros(count, dtype=torch.long, device=device)
        self._columns: list[int] = []
        self._rows = torch.arange(count, device=device)
        self.layers: list[SlotLayer] = []
        self.cache = Cache(layers=[])

    @property
    def seen(self) -> int:
        """Cached columns that attention reads in one pass over the rows in use, padding included."""
        return self.used * max(self._columns, default=0)

    def admit(self, prompts: Sequence[tuple[Tensor, Tensor]], mask: Tensor, owner: Tensor) -> None:
        """Add n rows behind those in use, each with a copy of the keys and values of its prompt.

        Args:
            prompts: keys and values, (N, heads, P, D) each, layer by layer.
            mask: (N, P) bool; padded left.
            owner: (n,) long; the prompt, 0 to N - 1, that each new row begins with.
        """
        if not self.layers:
            self.layers = [SlotLayer(self, keys, values) for keys, values in prompts]
            self.cache.layers = [*self.layers]
        new, width = slice(self.used, self.used + len(owner)), mask.shape[1]
        for layer, (keys, values) in zip(self.layers, prompts, strict=True):
            layer.keys[new, :, :width] = keys[owner]
            layer.values[new, :, :width] = values[owner]
        self._bias[new] = self._hidden
        self._bias[new, 0, 0, :width].masked_fill_(mask[owner], 0)
        self._positions[new] = mask.sum(1)[owner]
        self._ends[new] = width
        self._columns += [width] * len(owner)
        self.used += len(owner)

    def row(self, row: int) -> list[tuple[Tensor, Tensor]]:
        """Return the keys and values of what a row has read, without padding: (heads, n, D) each, layer by layer."""
        columns = (self._bias[row, 0, 0, : self._columns[row]] == 0).nonzero()[:, 0]
        return [(layer.keys[row][:, columns], layer.values[row][:, columns]) for layer in self.layers]

    def keep(self, running: Sequence[bool]) -> list[int]:
        """Remove the rows that have ended.

            running   [T, F, T, F, T]    rows 1 and 3 have ended, 3 are left
            holes     [1]                ended rows among the first 3
            movers    [4]                running rows behind the first 3; as many as there are holes
            order     [0, 4, 2]          row 4 is copied into row 1

        Args:
            running: for each row in use, whether it goes on.

        Returns:
            For each row that is left, in its new order, which row it was.
        """
        left = sum(running)
        holes = [row for row in range(left) if not running[row]]
        movers = [row for row in range(left, self.used) if running[row]]
        order = list(range(left))
        for hole, mover in zip(holes, movers, strict=True):
            order[hole] = mover
        if holes:
            width = max(self._columns)
            to, source = carried([torch.tensor(holes), torch.tensor(movers)], self._rows.device)
            for table in [table for layer in self.layers for table in (layer.keys, layer.values)]:
                table[:, :, :width].index_copy_(0, to, table[:, :, :width].index_select(0, source))
            for state in (self._bias, self._positions, self._ends):
                state.index_copy_(0, to, state.index_select(0, source))
        self._columns = [self._columns[row] for row in order]
        self.used = left
        return order

    def read(self, tokens: Tensor) -> StepInputs:
        """Return the arguments for a forward pass of the model over the next token of every row in use.

        Args:
            tokens: (used,) long.
        """
        rows = self._rows[: self.used]
        self._bias[rows, 0, 0, self._ends[rows]] = 0
        positions = self._positions[rows].unsqueeze(1)
        bias = self._bias[: self.used, :, :, : max(self._columns) + 1]
        return {"input_ids": tokens.unsqueeze(1), "position_ids": positions, "attention_mask": bias}

    def advance(self) -> None:
        """Note that a forward pass has made every row in use a token longer."""
        self._positions[: self.used] += 1
        self._ends[: self.used] += 1
        self._columns = [column + 1 for column in self._columns]

    def write(self, layer: SlotLayer, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store the keys and values of one token of every row in use.

        Args:
            layer: whose they are.
            keys, values: (used, heads, 1, D).

        Returns:
            All keys and values that attention reads, (used, heads, columns, D) each.
        """
        width = max(self._columns) + 1
        if min(self._columns) + 1 == width:  # all rows are as long: to write a slice is cheaper than to scatter
            place: tuple[slice | Tensor, ...] = (slice(self.used), slice(None), slice(width - 1, width))
            layer.keys[place], layer.values[place] = keys, values
        else:
            place = (self._rows[: self.used], slice(None), self._ends[: self.used])
            layer.keys[place] = keys[:, :, 0].to(layer.keys.dtype)
            layer.values[place] = values[:, :, 0].to(layer.values.dtype)
        return layer.keys[: self.used, :, :width], layer.values[: self.used, :, :width]


def narrow(table: Tensor) -> Tensor:
    """Return keys or values in the dtype that attention reads them in: that of autocast, where they may be float32 after a rotation."""
    device = table.device.type
    return table.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else table


class SlotLayer(DynamicLayer):
    """The keys and values of one layer, (count, heads, capacity, D) each, as a cache layer of transformers.

    Args:
        slots: says where each row's next token goes.
        keys, values: (N, heads, P, D) of some prompts; the model's heads, D, dtype and device are taken from them.
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

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Store the newest token of every row; return all keys and values that attention reads. See `Slots.write`."""
        return self.slots.write(self, key_states, value_states)

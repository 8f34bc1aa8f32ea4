"""The decoding loop on a GPU: chunks of steps in which the host waits for nothing.

A step of few rows has hundreds of short kernels, and the host that waits for one of them launches none meanwhile. So the host looks
only every 16 steps who has ended. Within a chunk nothing depends on it: columns are written through indices on the device, attention
reads a width that grows in steps of 256, and rows that have ended run on, but what they draw is not kept. Every step of a chunk is the
same work on the same memory, which a CUDA graph can hold: see `Replayed`.

The tokens are those of the loop that CPUs take, `rl_lightning.generation.loop.Decoding`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rl_lightning.generation.decoding import Step, decoding_step
from rl_lightning.generation.loop import REFILL_AT, Batch, Decoding
from rl_lightning.generation.reading import Prefilled
from rl_lightning.generation.slots import SlotLayer, Slots, StepInputs
from rl_lightning.travel import carried

#: Steps between two looks at who has ended, and columns by which the width that attention reads grows.
STEPS, WIDTH = 16, 256

#: Rows by which those of a CUDA graph grow: the more often one is replayed, and not captured anew.
ROWS = 8


class SteadySlots(Slots):
    """Slots whose steps do the same work from one `prepare` to the next."""

    width = 0

    def prepare(self, steps: int) -> None:
        """Make room for so many steps."""
        self._columns = [min(column + steps, self.capacity) for column in self._columns]
        self.width = min(self.capacity, -(-max(self._columns) // WIDTH) * WIDTH)

    def read(self, tokens: Tensor) -> StepInputs:
        """Return the arguments for a forward pass over the next token of every row in use, (used,) long."""
        rows = self._rows[: self.used]
        self._bias[rows, 0, 0, self._ends[: self.used]] = 0
        return {
            "input_ids": tokens.unsqueeze(1),
            "position_ids": self._positions[: self.used].unsqueeze(1),
            "attention_mask": self._bias[: self.used, :, :, : self.width],
        }

    def advance(self) -> None:
        """Note that every row is a token longer; those that run on after their end stay where there is room."""
        for state in (self._positions, self._ends):
            state[: self.used].add_(1).clamp_(max=self.capacity - 1)

    def write(self, layer: SlotLayer, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store one token of every row: see `Slots.write`."""
        place = (self._rows[: self.used], slice(None), self._ends[: self.used])
        layer.keys[place] = keys[:, :, 0].to(layer.keys.dtype)
        layer.values[place] = values[:, :, 0].to(layer.values.dtype)
        return layer.keys[: self.used, :, : self.width], layer.values[: self.used, :, : self.width]


@dataclass
class Replayed:
    """Runs a step once for each shape that it has, and then replays it from a CUDA graph.

    Args:
        graphs: one for each key, the number of rows and the width of attention.
    """

    graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = field(default_factory=dict)

    def run(self, key: tuple[int, int], step: Callable[[], None], times: int) -> None:
        """Do a step so many times.

        Args:
            key: names its shapes and its memory.
            step: reads and writes the same memory each time, and waits for nothing.
            times: at least 1.
        """
        if key not in self.graphs:
            step()  # kernels are loaded, and memory is there, before anything is captured
            times -= 1
            graph = torch.cuda.CUDAGraph()
            # Graphs are replayed one after the other, and nothing that one leaves behind is read later: they share their memory.
            with torch.cuda.graph(graph, pool=next(iter(self.graphs.values())).pool() if self.graphs else None):
                step()
            self.graphs[key] = graph
        for _ in range(times):
            self.graphs[key].replay()


@dataclass
class SteadyDecoding(Decoding):
    """`Decoding` in chunks.

        active   [7, 2, 5]     responses by slot; those that end within a chunk stay until it ends
        tokens   (most,)       the newest token of each slot, not read yet
        index    (most,)       `active` on the device

    Args:
        replayed: CUDA graphs of steps; None: every step is launched kernel by kernel.
    """

    replayed: Replayed | None = None
    _said: dict[int, list[int]] = field(default_factory=dict)

    def to_the_end(self, batch: Batch) -> Iterator[list[int]]:
        """Sample until every response has ended; yield, chunk by chunk, the numbers of those that have."""
        slots: SteadySlots | None = None
        tokens, index = batch.lengths.new_zeros(self.most), batch.lengths.new_zeros(self.most)
        active: list[int] = []
        step = decoding_step(self.model)
        while active or self.prompts.are_left:
            free = self.most - len(active)
            if not active or (self.prompts.are_left and free >= max(1, self.most * REFILL_AT)):
                part, chosen = self.prompts.take(free)
                slots = slots or self._slots(part)
                new = slice(slots.used, slots.used + len(chosen))
                rows, owner = carried(list(torch.tensor(chosen).T.contiguous()), batch.ids.device)
                slots.admit(part.layers, part.mask, owner)
                index[new], tokens[new] = rows, self._draw_there(batch, rows, part.logits[owner])
                active += [row for row, _ in chosen]
                self._said.update({row: [] for row, _ in chosen})
                continue
            assert slots is not None
            steps = min(STEPS, max(self.request.row_caps[row] - max(1, len(self._said[row])) for row in active))
            if steps:
                self._advance(batch, slots, step, tokens, index, steps)
            ended = self._look(batch, active, index[: len(active)], steps + 1)
            for place, row in enumerate(active):
                if ended[place] and self.kept is not None:
                    read = (
                        len(self.request.prompts[row // self.request.group_size].input_ids) + len(self._said[row]) - 1
                    )
                    self._keep(batch, row, [(k[:, :read], v[:, :read]) for k, v in slots.row(place)])
            yield [row for row, over in zip(active, ended, strict=True) if over]
            if any(ended):
                order = slots.keep([not over for over in ended])
                active = [active[place] for place in order]
                (moved,) = carried([torch.tensor(order, dtype=torch.long)], index.device)
                for table in (tokens, index):
                    table[: len(order)] = table[moved]

    def said(self, batch: Batch, row: int) -> list[int]:
        """Return the tokens of a response, as the host has seen them."""
        return self._said[row]

    def _slots(self, part: Prefilled) -> SteadySlots:
        # Rows of masks of a multiple of 8 numbers, or the attention kernel copies them.
        capacity = -(-self.capacity // 8) * 8
        return SteadySlots(self.most, capacity, part.logits.device, part.layers[0][0].dtype)

    def _advance(self, batch: Batch, slots: SteadySlots, step: Step, tokens: Tensor, index: Tensor, steps: int) -> None:
        """Make every row in the slots so many tokens longer; the host waits for nothing."""
        slots.prepare(steps)
        used, rows = slots.used, slots.used
        if self.replayed is not None:  # slots that nobody is in are computed too, for the spare response
            rows = min(self.most, -(-used // ROWS) * ROWS)
            index[used:rows] = len(batch.caps) - 1
        slots.used = rows
        tokens, index = tokens[:rows], index[:rows]

        def once() -> None:
            logits = step(slots, tokens)
            slots.advance()
            tokens.copy_(self._draw_there(batch, index, logits))

        if self.replayed is None:
            for _ in range(steps):
                once()
        else:
            self.replayed.run((rows, slots.width), once, steps)
        slots.used = used
        self.work["steps"] += steps
        self.work["rows"] += steps * slots.used
        self.work["seen"] += steps * slots.seen

    def _draw_there(self, batch: Batch, rows: Tensor, logits: Tensor) -> Tensor:
        """Draw and store the next token of some responses, but of those that have ended; return the tokens (n,)."""
        lengths, caps = batch.lengths[rows], batch.caps[rows]
        live, columns = ~batch.stopped[rows] & (lengths < caps), lengths.minimum(caps - 1)
        # What is drawn for the spare response is not kept.
        known = rows if self.replayed is None else rows.clamp(max=len(self.request.streams) - 1)
        tokens, logprobs = self.draw(logits, batch.uniforms[rows, columns], self.request.sampling, known, columns)
        batch.ids[rows, columns] = torch.where(live, tokens, batch.ids[rows, columns])
        batch.logprobs[rows, columns] = torch.where(live, logprobs, batch.logprobs[rows, columns])
        batch.lengths[rows] = lengths + live
        batch.stopped[rows] = batch.stopped[rows] | (live & (tokens[:, None] == batch.stops).any(1))
        return tokens

    def _look(self, batch: Batch, active: list[int], index: Tensor, newest: int) -> list[bool]:
        """Read what was drawn since the last look; return for each active response whether it has ended. The host waits once.

        Args:
            batch: of all responses.
            active, index: those in the slots, on the host and on the device.
            newest: tokens that each may have got since.
        """
        seen = torch.tensor([len(self._said[row]) for row in active])
        columns = (seen[:, None] + torch.arange(newest)).clamp(max=batch.ids.shape[1] - 1)
        (there,) = carried([columns], index.device)
        home = carried([batch.lengths[index], batch.stopped[index], batch.ids[index[:, None], there]], "cpu")
        lengths, stopped, ids = (one.tolist() for one in home)
        cut: dict[int, int] = {}
        for place, row in enumerate(active):
            said = self._said[row]
            for token in ids[place][: lengths[place] - len(said)]:
                said.append(token)
                if batch.strings is not None and batch.strings.completes(said):
                    cut[row], stopped[place] = len(said), True
                    break
        if cut:  # what ran on behind a stop string was never said
            rows, ends = carried([torch.tensor(list(cut)), torch.tensor(list(cut.values()))], index.device)
            batch.lengths[rows], batch.stopped[rows] = ends, torch.ones_like(rows, dtype=torch.bool)
        caps = self.request.row_caps
        return [over or len(self._said[row]) == caps[row] for row, over in zip(active, stopped, strict=True)]

"""Packed forward passes: each prompt is computed once for all its responses, and padding is not computed at all.

All tokens of a microbatch are put into one long row. Embeddings, projections and feed-forward layers, which take most of the
time, run on that row. Only attention must know which tokens belong together. It divides the row into segments: a *trunk* is a
prompt that several responses share; a *branch* is one of these responses, which sees its trunk and itself; a row whose prompt
no other row has is one trunk, prompt and response together.

    rows (B, T), T = P + R                 segments
      . a b | c d .                        trunk 0   a b            shared by rows 0 and 1
      . a b | e . .                        trunk 1   f g h i j k    row 2
      f g h | i j k                        branch 0  c d            of trunk 0
                                           branch 1  e              of trunk 0
    packed (1, L)
      input_ids   a b f g h i j k c d e    L = 11 of B T = 18 tokens
      positions   0 1 0 1 2 3 4 5 2 3 2    a token's place in its own sequence
    who sees whom (query by row, key by column; within a segment up to the query itself)
                  trunk 0   trunk 1   branch 0   branch 1
      trunk 0     causal
      trunk 1               causal
      branch 0    all                 causal
      branch 1    all                            causal

Two methods implement this: `Packing.attend` cuts the row into blocks for PyTorch's SDPA, `Packing.attend_whole` leaves it whole
and gives FlexAttention this table as a mask. `packed_attention.py` makes them attention functions of transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, cached_property

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from rl_lightning.models.blocks import Block, laid_out
from rl_lightning.models.spread import Spread, Take
from rl_lightning.travel import carried, on_host

#: Bytes. If the padded queries of a layer have more, padded queries, keys and values are not kept for the backward pass but
#: computed again there.
_KEEP_BELOW = 1 << 23


class Packing:
    """The packed row of a microbatch and its segments; see the module's sketch.

    Args:
        input_ids, attention_mask: (B, T), prompts padded left and responses right, without gaps. Rows that share a prompt must be
            neighbours.
        response_length: R, the number of response columns at the end.

    Attributes:
        input_ids: (1, L) long; each token once.
        positions: (1, L) long; its place in its own sequence.
        before: (B, R + 1) long, indices into L: the token that predicts each response token, and last the token after
            which a further one would come. Columns beyond a response repeat its last entry. In the sketch:

                row 0   b c d d        row 1   b e e e        row 2   h i j k
    """

    def __init__(self, input_ids: Tensor, attention_mask: Tensor, response_length: int) -> None:
        # All of this is computed on the host, and travels to the device of the rows in one copy.
        prompt, device = input_ids.shape[1] - response_length, input_ids.device
        input_ids, attention_mask = on_host(input_ids), on_host(attention_mask)
        mask, position = attention_mask.bool(), attention_mask.long().cumsum(1) - 1
        # Which rows have the prompt of the row above? In the sketch, for rows 0 1 2:
        #   first  1 0 1   a new prompt begins        trunk  0 0 1   number of the row's trunk
        #   shared 1 0     by trunk                   heads 0 2, branches 0 1: row numbers
        first = torch.ones_like(mask[:, 0])
        ids = input_ids.masked_fill(~mask, -1)[:, :prompt]  # padding may hold any token
        first[1:] = (ids[1:] != ids[:-1]).any(1)
        trunk = first.long().cumsum(0) - 1
        shared = trunk.bincount(minlength=1) > 1
        heads, branches = first.nonzero()[:, 0], shared[trunk].nonzero()[:, 0]

        # Which of a row's T columns go into its trunk, (trunks, T), and into its branch, (branches, T).
        in_trunk, in_branch = mask[heads], mask[branches]
        in_trunk[shared, prompt:] = False
        in_branch[:, :prompt] = False
        lengths = torch.cat([in_trunk.sum(1), in_branch.sum(1)])
        starts = lengths.cumsum(0) - lengths
        prompts = mask[:, :prompt].sum(1)
        packed_ids = torch.cat([input_ids[heads][in_trunk], input_ids[branches][in_branch]])[None]
        positions = torch.cat([position[heads][in_trunk], position[branches][in_branch]])[None]

        # Of each row, (B,): where in L its prompt ends, and where its response begins.
        last_of_prompt = starts[trunk] + prompts - 1
        own_start = last_of_prompt + 1  # in a trunk that is a whole row, the response follows the prompt
        own_start[branches] = starts[len(heads) :]
        column = torch.arange(response_length + 1).minimum((mask.sum(1) - prompts)[:, None])
        before = torch.where(column == 0, last_of_prompt[:, None], own_start[:, None] + column - 1)

        blocks, offsets = laid_out(lengths.tolist(), shared.tolist(), trunk[branches].tolist(), device)
        trunk_of = torch.cat([torch.arange(len(heads)), trunk[branches]])
        self._settle([packed_ids, positions, before], lengths, trunk_of, starts, torch.tensor(offsets), blocks, device)

    def _settle(
        self,
        read: list[Tensor],
        lengths: Tensor,
        trunk_of: Tensor,
        starts: Tensor,
        offsets: Tensor,
        blocks: list[Block],
        device: torch.device,
    ) -> None:
        """Bring everything to the device.

        Args:
            read: what a model, and whoever reads its result, is given: `input_ids`, `positions`, `before`.
            lengths, trunk_of, starts, offsets: by segment, its tokens; the segment of its trunk; its first place in the row, and in
                padded space.
            blocks: of padded space.
            device: of the rows.
        """
        self._blocks, self._area = blocks, blocks[-1].places.stop if blocks else 0
        tokens = torch.arange(int(lengths.sum()))
        slots = tokens + (offsets - starts).repeat_interleave(lengths)
        free = torch.ones(self._area, dtype=torch.bool).index_fill(0, slots, False).nonzero()[:, 0]
        segments = [table.repeat_interleave(lengths) for table in (torch.arange(len(lengths)), trunk_of)]
        branches = [block for block in blocks if block.owner is not None]
        tables = [table for block in branches for table in (block.owner, block.trunks) if table is not None]
        arrived = iter(carried([*read, *segments, slots, free, *tables], device))
        self.input_ids, self.positions, self.before = next(arrived), next(arrived), next(arrived)
        #: (L,) long; the segment of each token, and the segment of its trunk: for a token of a trunk, its own.
        self._segment, self._trunk = next(arrived), next(arrived)
        #: (L,) long, the slot of each token in padded space; (area − L,) long, the slots without a token.
        self._slots, self._padding = next(arrived), next(arrived)
        for block in branches:
            block.settle(next(arrived), next(arrived))

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        """Return the attention output of every token over the tokens that it sees, through SDPA.

        Args:
            query: (1, heads, L, D).
            key, value: (1, key-value heads, L, D).
            scaling: factor of the scores; 1/√D if None.

        Returns:
            (1, L, heads, D).
        """
        query, key, value = (one[0].transpose(0, 1) for one in (query, key, value))  # (L, heads, D)
        if torch.is_grad_enabled() and self._area * query[0].nbytes > _KEEP_BELOW:
            # Padded copies are large, and the tables that they are copied from are kept anyway.
            read: Tensor = checkpoint(
                self._read,
                query,
                key,
                value,
                scaling,
                use_reentrant=False,
                preserve_rng_state=False,
                determinism_check="none",
            )
        else:
            read = self._read(query, key, value, scaling)
        return read[None]

    def attend_whole(self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        """Return what `attend` returns, from one call of FlexAttention.

        Args:
            query, key, value, scaling: see `attend`.
        """
        kernel, _ = _flex(query.device.type)
        read = kernel(query, key, value, block_mask=self._trees, scale=scaling, enable_gqa=True)
        return read.transpose(1, 2)

    @cached_property
    def _trees(self) -> BlockMask:
        """The table of the module's sketch as FlexAttention's mask, (L, L). Trunks come before their branches, so `key <= query`
        also lets a branch see its whole trunk."""
        segment, trunk = self._segment, self._trunk

        def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            related = (segment[query] == segment[key]) | (trunk[query] == segment[key])
            return related & (key <= query)

        _, mask = _flex(segment.device.type)
        return mask(sees, None, None, len(segment), len(segment), device=segment.device)

    def _read(self, queries: Tensor, keys: Tensor, values: Tensor, scaling: float | None) -> Tensor:
        """Return the attention output, (L, heads, D), of queries, keys and values, (L, heads, D) each."""
        repeat = queries.shape[1] // keys.shape[1]
        spread = [Spread.apply(table, self._slots, self._padding, self._area) for table in (queries, keys, values)]
        trunks: list[Tensor] = []
        parts = []
        for block in self._blocks:
            # (slots, heads, D) → (rows, heads, width, D)
            query, key, value = (
                one[block.places].unflatten(0, (block.rows, block.width)).transpose(1, 2) for one in spread
            )
            if block.owner is not None:
                # Branches: the trunk's keys in front of their own, (rows, heads, seen + width, D).
                key, value = (
                    torch.cat([of_trunk[:, :, : block.seen].index_select(0, block.owner), own], 2)
                    for of_trunk, own in zip(trunks, (key, value), strict=True)
                )
            elif not trunks:  # block 0: the shared trunks, if there are any
                trunks = [key, value]
            if repeat > 1:
                key, value = (one.repeat_interleave(repeat, 1) for one in (key, value))
            bias = block.mask(_read_in(query))
            read = scaled_dot_product_attention(
                query, key, value, attn_mask=bias, is_causal=bias is None, scale=scaling
            )
            parts.append(read.transpose(1, 2).flatten(0, 1))
        taken: Tensor = Take.apply(torch.cat(parts) if len(parts) > 1 else parts[0], self._slots, self._padding)
        return taken


def _read_in(query: Tensor) -> torch.dtype:
    """Return the dtype that SDPA computes in: that of autocast, which would cast a mask in every call, and lose its strides."""
    device = query.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype


@cache
def _flex(device_type: str) -> tuple[Callable[..., Tensor], Callable[..., BlockMask]]:
    """Return FlexAttention and the function that makes its masks; compiled except on a CPU, where tests run them as they are."""
    if device_type == "cpu":
        return flex_attention, create_block_mask
    return torch.compile(flex_attention), torch.compile(create_block_mask)

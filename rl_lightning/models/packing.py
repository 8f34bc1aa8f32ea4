"""A forward pass without waste: a prompt computed once for all its responses, and no padding computed.

The tokens of a microbatch stand in one long row. Embeddings, projections and feed-forward layers, which cost nearly
everything, see that row alone; attention takes it apart into *trunks* and *branches*. A prompt with several responses is a
trunk, each response a branch that sees its trunk and itself; a row that shares its prompt with no other is a trunk whole.

There are two attentions that know them: one cuts the row into blocks for PyTorch's SDPA, the other leaves it whole and gives
FlexAttention a mask in the shape of the trees.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rl_lightning.models.families import unlike_plain_attention

#: What transformers calls the attentions below, by what it calls the kernels that they use; rows that are not packed go through
#: its `sdpa`.
_NAMES = {"sdpa": "rl_lightning_packed", "flex_attention": "rl_lightning_packed_flex"}

#: Padded tokens that a block of its own must save: a call of the attention kernel costs about as much.
_WORTH_A_BLOCK = 256

#: Padded queries, keys and values of one layer, if its queries have more bytes than this, are made again in the backward pass.
_KEEP_BELOW = 1 << 23

log = logging.getLogger(__name__)


@dataclass
class _Block:
    """Segments of about the same length, side by side in padded space, as attention takes them.

    Args:
        start, rows, width: where they are.
        owner: (rows,) long; the shared trunk that each of them, a branch, sees; None for trunks.
        bias: (rows, 1, width, seen + width), added to the scores of branches: 0 or −∞.
        seen: columns of the shared trunks that some of them see.
    """

    start: int
    rows: int
    width: int
    owner: Tensor | None = None
    bias: Tensor | None = None
    seen: int = 0

    @property
    def places(self) -> slice:
        """Where it is in padded space."""
        return slice(self.start, self.start + self.rows * self.width)


class Packing:
    """Where the tokens of padded rows stand in one row without padding, and which of them see each other.

    Args:
        input_ids, attention_mask: (B, T), prompts padded left and responses right, each in one piece.
        response_length: R, the number of response columns at the end.

    Attributes:
        input_ids, positions: (1, L) long; each token once, and its place in its own sequence.
        before: (B, R + 1) long, into L; where the token stands that predicts each response token, and the one after the
            last. Columns beyond a response repeat its last.
    """

    def __init__(self, input_ids: Tensor, attention_mask: Tensor, response_length: int) -> None:
        prompt, device = input_ids.shape[1] - response_length, input_ids.device
        mask, position = attention_mask.bool(), attention_mask.long().cumsum(1) - 1
        first = torch.ones_like(mask[:, 0])
        ids = input_ids.masked_fill(~mask, -1)[:, :prompt]  # padding may hold any token
        first[1:] = (ids[1:] != ids[:-1]).any(1)
        trunk = first.long().cumsum(0) - 1
        shared = trunk.bincount(minlength=1) > 1
        heads, branches = first.nonzero()[:, 0], shared[trunk].nonzero()[:, 0]

        in_trunk, in_branch = mask[heads], mask[branches]
        in_trunk[shared, prompt:] = False
        in_branch[:, :prompt] = False
        lengths = torch.cat([in_trunk.sum(1), in_branch.sum(1)])
        starts = lengths.cumsum(0) - lengths
        prompts = mask[:, :prompt].sum(1)
        self.input_ids = torch.cat([input_ids[heads][in_trunk], input_ids[branches][in_branch]])[None]
        self.positions = torch.cat([position[heads][in_trunk], position[branches][in_branch]])[None]

        last_of_prompt = starts[trunk] + prompts - 1
        own_start = last_of_prompt + 1  # where a row is a trunk whole, its response follows its prompt
        own_start[branches] = starts[len(heads) :]
        column = torch.arange(response_length + 1, device=device).minimum((mask.sum(1) - prompts)[:, None])
        self.before = torch.where(column == 0, last_of_prompt[:, None], own_start[:, None] + column - 1)

        #: (L,) long; which segment each token is in, and which it sees whole: its trunk, or its own so far as it came before.
        trunk_of = torch.cat([torch.arange(len(heads), device=device), trunk[branches]])
        self._segment = torch.arange(len(lengths), device=device).repeat_interleave(lengths)
        self._trunk = trunk_of.repeat_interleave(lengths)

        self._place(lengths.tolist(), shared.tolist(), trunk[branches].tolist(), device)
        #: (L,) into padded space.
        self._slots = torch.arange(int(lengths.sum()), device=device) + (self._offsets - starts).repeat_interleave(
            lengths
        )

    def _place(self, lengths: list[int], shared: list[bool], owners: list[int], device: torch.device) -> None:
        """Give every segment its place in padded space: shared trunks, other trunks, branches."""
        trunks = len(shared)
        order = [trunk for trunk in range(trunks) if shared[trunk]]
        parts = [order] if order else []
        parts += _buckets([trunk for trunk in range(trunks) if not shared[trunk]], lengths)
        branch_parts = _buckets(list(range(trunks, len(lengths))), lengths)
        number = {trunk: place for place, trunk in enumerate(order)}
        offsets, start = [0] * len(lengths), 0
        self._blocks: list[_Block] = []
        for part in parts + branch_parts:
            block = _Block(start, len(part), max(lengths[segment] for segment in part))
            for row, segment in enumerate(part):
                offsets[segment] = start + row * block.width
            if part[0] >= trunks:
                own = [owners[segment - trunks] for segment in part]
                block.owner = torch.tensor([number[trunk] for trunk in own], device=device)
                block.seen = max(lengths[trunk] for trunk in own)
                block.bias = _bias(block, torch.tensor([lengths[trunk] for trunk in own], device=device))
            self._blocks.append(block)
            start = block.places.stop
        self._area = start
        self._offsets = torch.tensor(offsets, device=device)

    @cached_property
    def _padding(self) -> Tensor:
        """The places in padded space where there is no token."""
        free = torch.ones(self._area, dtype=torch.bool, device=self._slots.device)
        free[self._slots] = False
        return free.nonzero()[:, 0]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        """Return what every token reads from those that it sees, (1, L, heads, D).

        Args:
            query: (1, heads, L, D).
            key, value: (1, key-value heads, L, D).
            scaling: of the products; 1/√D if None.
        """
        tables = [one[0].transpose(0, 1) for one in (query, key, value)]  # (L, heads, D)
        if torch.is_grad_enabled() and self._area * tables[0][0].nbytes > _KEEP_BELOW:
            # Padded copies are large; what they are made of is kept anyway.
            kept: Any = {"use_reentrant": False, "preserve_rng_state": False, "determinism_check": "none"}
            read: Tensor = checkpoint(self._read, *tables, scaling, **kept)
        else:
            read = self._read(*tables, scaling)
        return read[None]

    def attend_whole(self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        """Return the same as `attend`, from one call of FlexAttention.

        Args:
            query, key, value, scaling: as there.
        """
        kernel, _ = _flex(query.device.type)
        read = kernel(query, key, value, block_mask=self._trees, scale=scaling, enable_gqa=True)
        return read.transpose(1, 2)

    @cached_property
    def _trees(self) -> BlockMask:
        """Which tokens see each other; a trunk stands before its branches."""
        segment, trunk = self._segment, self._trunk

        def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            related = (segment[query] == segment[key]) | (trunk[query] == segment[key])
            return related & (key <= query)

        _, mask = _flex(segment.device.type)
        return mask(sees, None, None, len(segment), len(segment), device=segment.device)

    def _read(self, *given: Any) -> Tensor:
        *tables, scaling = given
        repeat = tables[0].shape[1] // tables[1].shape[1]
        spread = [_Spread.apply(table, self._slots, self._padding, self._area) for table in tables]
        trunks: list[Tensor] = []
        parts = []
        for block in self._blocks:
            query, key, value = (
                one[block.places].unflatten(0, (block.rows, block.width)).transpose(1, 2) for one in spread
            )
            if block.owner is not None:
                key, value = (
                    torch.cat([of_trunk[:, :, : block.seen].index_select(0, block.owner), own], 2)
                    for of_trunk, own in zip(trunks, (key, value), strict=True)
                )
            elif not trunks:  # shared ones come first
                trunks = [key, value]
            if repeat > 1:
                key, value = (one.repeat_interleave(repeat, 1) for one in (key, value))
            bias = None if block.bias is None else block.bias.to(query.dtype)
            read = scaled_dot_product_attention(
                query, key, value, attn_mask=bias, is_causal=bias is None, scale=scaling
            )
            parts.append(read.transpose(1, 2).flatten(0, 1))
        taken: Tensor = _Take.apply(torch.cat(parts) if len(parts) > 1 else parts[0], self._slots, self._padding)
        return taken


def _buckets(segments: list[int], lengths: list[int]) -> list[list[int]]:
    """Return segments such that those in a part are about as long: a new part begins where it saves enough padding."""
    parts: list[list[int]] = []
    ordered = sorted(segments, key=lambda segment: -lengths[segment])
    width = 0
    for done, segment in enumerate(ordered):
        if not parts or (width - lengths[segment]) * (len(ordered) - done) >= _WORTH_A_BLOCK:
            parts.append([])
            width = lengths[segment]
        parts[-1].append(segment)
    return parts


def _bias(block: _Block, trunk_lengths: Tensor) -> Tensor:
    """Return what is added to the scores of branches: they see their trunk, and of themselves what came before."""
    steps = torch.arange(block.width, device=trunk_lengths.device)
    seen = torch.arange(block.seen, device=trunk_lengths.device) < trunk_lengths[:, None]
    causal = (steps <= steps[:, None]).expand(block.rows, -1, -1)
    visible = torch.cat([seen[:, None].expand(-1, block.width, -1), causal], 2)[:, None]
    return torch.zeros(visible.shape, device=visible.device).masked_fill_(~visible, -torch.inf)


class _Spread(torch.autograd.Function):
    """Rows written into places of a longer table of zeros, no two into one: so its adjoint reads, and adds nothing up."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, places: Tensor, others: Tensor, length: int) -> Tensor:
        ctx.save_for_backward(places)
        return _placed(rows, places, others, length)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (places,) = ctx.saved_tensors
        return gradient[places], None, None, None


class _Take(torch.autograd.Function):
    """The adjoint of `_Spread`: rows read out of a longer table."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, places: Tensor, others: Tensor) -> Tensor:
        ctx.save_for_backward(places, others)
        ctx.length = len(table)
        return table[places]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        places, others = ctx.saved_tensors
        return _placed(gradient, places, others, ctx.length), None, None


def _placed(rows: Tensor, places: Tensor, others: Tensor, length: int) -> Tensor:
    """Return a table with rows in their places, and zeros in the others."""
    table = rows.new_empty(length, *rows.shape[1:])
    table[places] = rows
    table[others] = 0
    return table


@cache
def _flex(device_type: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return FlexAttention and the maker of its masks: compiled, but on a CPU, where tests read what they mean."""
    if device_type == "cpu":
        return flex_attention, create_block_mask
    return torch.compile(flex_attention), torch.compile(create_block_mask)


def _attention(
    attend: Callable[[Packing, Tensor, Tensor, Tensor, float | None], Tensor],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    packing: Packing | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it, once it is known how packed rows attend."""
    if packing is not None:
        return attend(packing, query, key, value, scaling), None
    if query.shape[2] == 1 and query.device.type == "cpu" and not dropout:
        # A decoding step: the kernel here takes shared keys as they are, a third faster than transformers' way around it.
        read_once = scaled_dot_product_attention(query, key, value, attention_mask, scale=scaling, enable_gqa=True)
        return read_once.transpose(1, 2), None
    read: tuple[Tensor, None] = sdpa_attention_forward(
        module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
    )
    return read


for _kernel, _attend in (("sdpa", Packing.attend), ("flex_attention", Packing.attend_whole)):
    AttentionInterface.register(_NAMES[_kernel], partial(_attention, _attend))
    AttentionMaskInterface.register(_NAMES[_kernel], sdpa_mask)


def enable_packing(model: PreTrainedModel) -> None:
    """Give a model the attention that packed rows need, where it can have it; else say why not.

    Whatever is not packed is read as by transformers' `sdpa`. A model that was asked for another attention keeps it. One with a
    window packs the rows that are no longer than it.
    """
    kernel = str(model.config._attn_implementation)
    reason = unlike_plain_attention(model)
    if kernel in _NAMES and model._supports_sdpa and unlike_plain_attention(model, longest=1) is None:
        model.set_attn_implementation(_NAMES[kernel])
    else:
        reason = reason or f"was loaded with attn_implementation {kernel}"
    if reason is not None:
        log.info(
            "%s %s: %sprompts are computed anew for each response, and padding with them",
            type(model).__name__,
            reason,
            "where a row is longer than that remembers, " if packs(model, longest=1) else "",
        )


def packs(model: nn.Module, longest: int | None = None) -> bool:
    """Tell whether a model takes packed rows.

    Args:
        model: of any kind.
        longest: tokens of the longest of them; as many as the model can read if None.
    """
    ours = isinstance(model, PreTrainedModel) and model.config._attn_implementation in _NAMES.values()
    return ours and unlike_plain_attention(model, longest) is None


def packed(rows: Packing) -> dict[str, Any]:
    """Return the arguments of a model's forward that make it read packed rows."""
    # A mask with four dimensions is passed on as it is; this one could not be mistaken for a real one.
    none = torch.empty(1, 1, 0, 0, dtype=torch.bool, device=rows.input_ids.device)
    return {"input_ids": rows.input_ids, "position_ids": rows.positions, "attention_mask": none, "packing": rows}

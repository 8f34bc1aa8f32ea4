"""Padded space: segments of a packed row in blocks of similar length, each the batch of one call of the attention kernel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

#: On a CPU a further block pays if it saves this many padded tokens: a call of the attention kernel costs about as much.
_WORTH_A_BLOCK = 256

#: On a GPU it pays if it saves this share of all tokens: there a call costs launches, in which the kernel passes over thousands of
#: padded tokens.
_SHARE_WORTH_A_BLOCK = 1 / 48

#: Masks have rows of a multiple of so many numbers on a GPU, or its kernels copy them first.
_MASK_ALIGNED = 8


@dataclass
class Block:
    """Segments of similar length, padded to one width: the batch of one call of the attention kernel.

    All blocks lie behind one another in *padded space*:

        block 0 (shared trunks)     block 1 (other trunks)      block 2 (branches)
        a b                         f g h i j k                 c d | e .

    Args:
        start: first slot of the block in padded space.
        rows: segments.
        width: slots per segment.
        owner: (rows,) long; for branches, the row of each one's trunk in block 0; None for trunks.
        trunks: (rows,) long; for branches, the length of each one's trunk.
        seen: for branches, the length of the longest of their trunks.
        bias: (rows, 1, width, seen + width or more), added to the attention scores of branches: 0 or −∞; None for trunks.
    """

    start: int
    rows: int
    width: int
    owner: Tensor | None = None
    trunks: Tensor | None = None
    seen: int = 0
    bias: Tensor | None = None

    @property
    def places(self) -> slice:
        """The slots of the block in padded space."""
        return slice(self.start, self.start + self.rows * self.width)

    def settle(self, owner: Tensor, trunks: Tensor) -> None:
        """Take over the block's tables on the device where attention is computed, and make the mask there."""
        self.owner, self.trunks, self.bias = owner, trunks, _bias(self, trunks)

    def mask(self, dtype: torch.dtype) -> Tensor | None:
        """Return what is added to attention scores in a dtype, (rows, 1, width, seen + width); None for trunks."""
        if self.bias is None:
            return None
        self.bias = self.bias.to(dtype)  # once for all layers, and whole: a part of it would lose its strides
        return self.bias[..., : self.seen + self.width]


def laid_out(
    lengths: list[int], shared: list[bool], owners: list[int], device: torch.device
) -> tuple[list[Block], list[int]]:
    """Put every segment into a block: first all shared trunks, then other trunks, then branches.

    Args:
        lengths: tokens of each segment, trunks before branches.
        shared: by trunk, whether it has branches.
        owners: by branch, the number of its trunk.
        device: where attention will be computed.

    Returns:
        The blocks, with tables on the host; and by segment its first slot in padded space.
    """
    trunks, worth, parted = len(shared), _WORTH_A_BLOCK, _buckets
    if device.type != "cpu":
        worth, parted = max(worth, int(sum(lengths) * _SHARE_WORTH_A_BLOCK)), _fewest
    order = [trunk for trunk in range(trunks) if shared[trunk]]
    parts = [order] if order else []
    parts += parted([trunk for trunk in range(trunks) if not shared[trunk]], lengths, worth)
    parts += parted(list(range(trunks, len(lengths))), lengths, worth)
    number = {trunk: place for place, trunk in enumerate(order)}
    offsets, start = [0] * len(lengths), 0
    blocks: list[Block] = []
    for part in parts:
        block = Block(start, len(part), max(lengths[segment] for segment in part))
        for row, segment in enumerate(part):
            offsets[segment] = start + row * block.width
        if part[0] >= trunks:
            own = [owners[segment - trunks] for segment in part]
            block.owner = torch.tensor([number[trunk] for trunk in own])
            block.trunks = torch.tensor([lengths[trunk] for trunk in own])
            block.seen = max(lengths[trunk] for trunk in own)
        blocks.append(block)
        start = block.places.stop
    return blocks, offsets


def _buckets(segments: list[int], lengths: list[int], worth: int) -> list[list[int]]:
    """Return segments in parts of similar length, longest first; a new part begins where it saves enough padding."""
    parts: list[list[int]] = []
    ordered = sorted(segments, key=lambda segment: -lengths[segment])
    width = 0
    for done, segment in enumerate(ordered):
        if not parts or (width - lengths[segment]) * (len(ordered) - done) >= worth:
            parts.append([])
            width = lengths[segment]
        parts[-1].append(segment)
    return parts


def _fewest(segments: list[int], lengths: list[int], worth: int) -> list[list[int]]:
    """Return segments in parts of similar length, longest first, such that padded tokens and `worth` for each part are together as few
    as can be.

        cost of the first n = min over i of  cost of the first i + length[i] (n - i) + worth
    """
    ordered = sorted(segments, key=lambda segment: -lengths[segment])
    widths = np.array([lengths[segment] for segment in ordered], dtype=np.int64)
    cost, begin = np.zeros(len(ordered) + 1, dtype=np.int64), [0] * (len(ordered) + 1)
    for end in range(1, len(ordered) + 1):
        options = cost[:end] + widths[:end] * (end - np.arange(end))
        begin[end] = int(options.argmin())
        cost[end] = options[begin[end]] + worth
    parts, end = [], len(ordered)
    while end:
        parts.append(ordered[begin[end] : end])
        end = begin[end]
    return parts[::-1]


def _bias(block: Block, trunks: Tensor) -> Tensor:
    """Return the additive mask of a block of branches, (rows, 1, width, seen + width): each sees its whole trunk and, of
    itself, the tokens up to the query. On a GPU rows are filled up with zeros.

    Args:
        block: its sizes.
        trunks: (rows,) long, tokens of each branch's trunk.
    """
    device = trunks.device
    steps = torch.arange(block.width, device=device)
    seen = torch.arange(block.seen, device=device) < trunks[:, None]
    causal = (steps <= steps[:, None]).expand(block.rows, -1, -1)
    visible = torch.cat([seen[:, None].expand(-1, block.width, -1), causal], 2)[:, None]
    filling = 0 if device.type == "cpu" else -visible.shape[-1] % _MASK_ALIGNED
    visible = torch.nn.functional.pad(visible, (0, filling), value=True) if filling else visible
    return torch.zeros(visible.shape, device=device).masked_fill_(~visible, -torch.inf)

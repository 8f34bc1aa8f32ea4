"""How long a machine must take at least: the work of sampling and training against what its processor and memory can do.

Williams, Waterman and Patterson, Roofline: an insightful visual performance model (2009): no work is done faster than
max(FLOPs / peak FLOP/s, bytes / bandwidth).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rl_lightning.models.families import unlike_plain_attention
from rl_lightning.types import Rows

#: Edge of the square matrices, and bytes of the table, that the limits are measured with: on a CPU, and elsewhere.
_ON_CPU, _ELSEWHERE = (512, 1 << 28), (8192, 1 << 30)
_REPEATS = 3


@dataclass(frozen=True)
class Limits:
    """What a machine can do at best.

    Args:
        flops: floating-point operations a second.
        bandwidth: bytes read from memory a second.
    """

    flops: float
    bandwidth: float

    def least_seconds(self, flops: float, bytes_read: float) -> float:
        """Return how long some work takes at least."""
        return max(flops / self.flops, bytes_read / self.bandwidth)


@cache
def measured_limits(device: torch.device, dtype: torch.dtype) -> Limits:
    """Return what a linear layer and a sum over a large table reach, the best of three each; once a process.

    The layer is square and of `dtype`. A plain product of matrices would not do: its right factor lies the other way round,
    and without instructions for bfloat16 a CPU takes seven times as long for that. The table is float32, since sums of
    narrower numbers may be held up by their conversion. Uses no random numbers.
    """
    edge, size = _ON_CPU if device.type == "cpu" else _ELSEWHERE
    square = torch.ones(edge, edge, device=device, dtype=dtype)
    table = torch.ones(size // torch.float32.itemsize, device=device)
    product = _best_seconds(lambda: nn.functional.linear(square, square))
    return Limits(2 * edge**3 / product, size / _best_seconds(table.sum))


def _best_seconds(work: Callable[[], Tensor]) -> float:
    seconds = []
    for _ in range(_REPEATS + 1):  # the first one warms up
        started = time.perf_counter()
        float(work().flatten()[0])  # waits for the device
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])


@dataclass
class Tokens:
    """What training passes have to do, whether or not they do more.

    Args:
        read: distinct tokens: no padding, and a prompt once for adjacent rows of its group.
        predicted: response tokens.
        seen: tokens that the read ones see, added up.
    """

    read: float = 0.0
    predicted: float = 0.0
    seen: float = 0.0

    def add(self, rows: Rows) -> None:
        """Add a forward pass."""
        responses = rows.lengths.double()
        prompts = rows.attention_mask.sum(1).double() - responses
        new = torch.ones_like(responses)
        new[1:] = (rows.group_ids[1:] != rows.group_ids[:-1]).double()
        self.read += float(responses.sum() + (new * prompts).sum())
        self.predicted += float(responses.sum())
        own = responses * (prompts + (responses + 1) / 2)
        self.seen += float((own + new * prompts * (prompts + 1) / 2).sum())


@dataclass(frozen=True)
class Work:
    """What one pass of a causal language model costs, counted from its layers.

    Args:
        body, head: numbers in the weights that every token, and every token that logits are computed for, is multiplied by.
        trained: of `body` and `head`, those with a gradient.
        attention: multiplications that a token does with each token that it sees, of queries with keys and of weights with
            values.
        cached: numbers that the cache keeps a token.
        itemsize: bytes of a number.
        recomputes: whether the backward pass does the forward pass of the body again.
    """

    body: int
    head: int
    trained: tuple[int, int]
    attention: int
    cached: int
    itemsize: int
    recomputes: bool = False

    @classmethod
    def of(cls, model: PreTrainedModel) -> Work | None:
        """Count a model; None if a layer is other than plain causal attention, which would cost otherwise.

        Of experts, those that one token goes through: a step with more tokens may read more, and reads no less.
        """
        if unlike_plain_attention(model) is not None:
            return None
        config = model.config.get_text_config()
        heads = config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        shared = getattr(config, "num_key_value_heads", None) or heads
        output: Any = model.get_output_embeddings()
        layers = [layer for layer in model.modules() if isinstance(layer, (nn.Linear, Conv1D)) and layer is not output]
        # Experts are no layers but tables: (experts, out, in).
        tables = [weight for weight in model.parameters() if weight.dim() == 3]
        used = getattr(config, "num_experts_per_tok", 1)
        numbers = [(_numbers(layer), layer.weight.requires_grad) for layer in layers]
        numbers += [(table.numel() // len(table) * used, table.requires_grad) for table in tables]
        return cls(
            body=sum(count for count, _ in numbers),
            head=0 if output is None else _numbers(output),
            trained=(
                sum(count for count, trained in numbers if trained),
                0 if output is None or not output.weight.requires_grad else _numbers(output),
            ),
            attention=2 * heads * width * config.num_hidden_layers,
            cached=2 * shared * width * config.num_hidden_layers,
            itemsize=next(model.parameters()).dtype.itemsize,
            recomputes=bool(getattr(model, "is_gradient_checkpointing", False)) and model.training,
        )

    def decoding(self, steps: float, rows: float, seen: float) -> tuple[float, float]:
        """Return FLOPs and bytes read of sampling with a cache.

        Args:
            steps: forward passes.
            rows: tokens read in all of them.
            seen: tokens that these see, added up.
        """
        flops = 2.0 * rows * (self.body + self.head) + 2.0 * seen * self.attention
        return flops, self.itemsize * (steps * (self.body + self.head) + seen * self.cached)

    def training(self, tokens: Tokens) -> float:
        """Return FLOPs of forward and backward passes: one product forward, one for the gradient of what goes in, one for
        that of the weights; of attention two each, forward, and four backward."""
        again = 1 if self.recomputes else 0
        body = (2 + again) * self.body + self.trained[0]
        head = 2 * self.head + self.trained[1]
        return 2.0 * (tokens.read * body + tokens.predicted * head + (3 + again) * tokens.seen * self.attention)


def _numbers(layer: Any) -> int:
    """Return how many numbers a linear layer's weight has, whether or not this rank holds them all."""
    return int(layer.in_features * layer.out_features if isinstance(layer, nn.Linear) else layer.nx * layer.nf)

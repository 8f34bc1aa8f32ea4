"""The roofline of sampling and training: the least time that they can take on a machine, from FLOPs and bytes of memory.

No work takes less than max(FLOPs / peak FLOP/s, bytes / bandwidth) seconds.

Source: Williams, Waterman and Patterson, Roofline: an insightful visual performance model (2009).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rl_lightning.models.families import unlike_plain_attention
from rl_lightning.models.quantized import count, quantized_layers
from rl_lightning.travel import on_host
from rl_lightning.types import Rows

#: Edge of the square matrices and bytes of the table that limits are measured with, on a CPU and on other devices.
_ON_CPU, _ELSEWHERE = (512, 1 << 28), (8192, 1 << 30)
_REPEATS = 3


@dataclass(frozen=True)
class Limits:
    """Measured limits of a device.

    Args:
        flops: floating-point operations per second.
        bandwidth: bytes read from memory per second.
    """

    flops: float
    bandwidth: float

    def least_seconds(self, flops: float, bytes_read: float) -> float:
        """Return the least time in seconds that some work can take, from its FLOPs and the bytes that it reads."""
        return max(flops / self.flops, bytes_read / self.bandwidth)


@cache
def measured_limits(device: torch.device, dtype: torch.dtype) -> Limits:
    """Measure FLOP/s with a square linear layer and bandwidth with a sum over a large table, best of three; once per process.

    A linear layer is used, not `a @ b`, because the memory layout of its weight matters: a CPU without bfloat16 instructions
    takes seven times as long for the other layout. The table is float32, because conversion may slow down sums of narrower
    numbers. No random numbers are drawn.
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
    """Tokens that training passes must process at least.

    Args:
        read: tokens in the pass, without padding and with each prompt once for adjacent rows of its group.
        predicted: response tokens.
        seen: sum over the read tokens of the number of tokens that each attends to.
    """

    read: float = 0.0
    predicted: float = 0.0
    seen: float = 0.0

    def add(self, rows: Rows) -> None:
        """Count the tokens of one more forward pass over some rows."""
        mask, groups = on_host(rows.attention_mask), on_host(rows.group_ids)
        responses = mask[:, -rows.response_length :].sum(1).double()
        prompts = mask.sum(1).double() - responses
        new = torch.ones_like(responses)
        new[1:] = (groups[1:] != groups[:-1]).double()
        self.read += float(responses.sum() + (new * prompts).sum())
        self.predicted += float(responses.sum())
        own = responses * (prompts + (responses + 1) / 2)
        self.seen += float((own + new * prompts * (prompts + 1) / 2).sum())


@dataclass(frozen=True)
class Work:
    """Cost of a pass of a causal language model, counted from its layers.

    Args:
        body: numbers in the weights that every token is multiplied by.
        head: the same of the language-model head, for tokens whose logits are computed.
        trained: how many numbers of `body` and of `head` have a gradient.
        attention: multiplications per pair of a token and one that it attends to: query with key, and weight with value.
        cached: numbers per token in the key-value cache.
        itemsize: bytes per number.
        recomputes: whether the backward pass repeats the forward pass of the body (gradient checkpointing).
        spared: bytes by which quantised weights are fewer than `itemsize` a number.
    """

    body: int
    head: int
    trained: tuple[int, int]
    attention: int
    cached: int
    itemsize: int
    recomputes: bool = False
    spared: int = 0

    @classmethod
    def of(cls, model: PreTrainedModel, longest: int | None = None, computed: torch.dtype | None = None) -> Work | None:
        """Count a model's layers; None if a layer has no plain causal attention, whose cost would be different.

        Of experts, those that one token passes through are counted. A step with several tokens may read more of them, so the
        count is a lower bound.

        Args:
            model: any.
            longest: tokens of the longest sequence; the model's context length if None. A window as long as it makes no difference.
            computed: the dtype of autocast, in which weights and cache are read where it is the narrower one; None without autocast.
        """
        if unlike_plain_attention(model, longest) is not None:
            return None
        config = model.config.get_text_config()
        heads = config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        shared = getattr(config, "num_key_value_heads", None) or heads
        output = model.get_output_embeddings()
        layers = [layer for layer in model.modules() if isinstance(layer, (nn.Linear, Conv1D)) and layer is not output]
        # Experts are stored as one tensor, (experts, out, in).
        tables = [weight for weight in model.parameters() if weight.dim() == 3]
        used = getattr(config, "num_experts_per_tok", 1)
        numbers = [(_numbers(layer), layer.weight.requires_grad) for layer in layers]
        numbers += [(table.numel() // len(table) * used, table.requires_grad) for table in tables]
        itemsize = next(model.parameters()).dtype.itemsize
        if computed is not None:
            itemsize = min(itemsize, computed.itemsize)
        packed = [layer.weight for _, layer in quantized_layers(model)]
        return cls(
            body=sum(count for count, _ in numbers),
            head=0 if output is None else _numbers(output),
            trained=(
                sum(count for count, trained in numbers if trained),
                0 if output is None or not output.weight.requires_grad else _numbers(output),
            ),
            attention=2 * heads * width * config.num_hidden_layers,
            cached=2 * shared * width * config.num_hidden_layers,
            itemsize=itemsize,
            recomputes=model.training
            and any(getattr(part, "gradient_checkpointing", False) for part in model.modules()),
            spared=sum(itemsize * count(weight) - weight.nbytes for weight in packed),
        )

    def decoding(self, steps: float, rows: float, seen: float) -> tuple[float, float]:
        """Return the FLOPs of sampling with a key-value cache, and the bytes that it reads.

        Args:
            steps: forward passes.
            rows: tokens processed in all of them.
            seen: sum over these tokens of the number of tokens that each attends to.
        """
        flops = 2.0 * rows * (self.body + self.head) + 2.0 * seen * self.attention
        return flops, self.itemsize * (steps * (self.body + self.head) + seen * self.cached) - steps * self.spared

    def training(self, tokens: Tokens) -> float:
        """Return the FLOPs of the forward and backward passes over some tokens.

        A linear layer takes one matrix product forward and two backward: for the gradient of its input and that of its weight.
        Attention takes two products forward and four backward.
        """
        again = 1 if self.recomputes else 0
        body = (2 + again) * self.body + self.trained[0]
        head = 2 * self.head + self.trained[1]
        return 2.0 * (tokens.read * body + tokens.predicted * head + (3 + again) * tokens.seen * self.attention)


def _numbers(layer: nn.Linear | Conv1D) -> int:
    """Return the number of entries of a linear layer's weight over all ranks, also if it is sharded."""
    return int(layer.in_features * layer.out_features if isinstance(layer, nn.Linear) else layer.nx * layer.nf)

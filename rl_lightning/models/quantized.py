"""Frozen weights in 4 or 8 bits, by bitsandbytes: what an adapter is trained beside on a small GPU."""

from __future__ import annotations

import copy
import functools
import importlib.util
import logging
import math
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, cast

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from rl_lightning.errors import UserError

if TYPE_CHECKING:
    from bitsandbytes.nn import Int8Params, Linear4bit, Linear8bitLt, Params4bit

Bits = Literal["4bit", "8bit"]

#: The attributes in which a weight of 4 bits keeps the scales of its blocks, and the scales of those.
_SCALES = ("absmax", "code", "offset")


def settings(bits: Bits, dtype: torch.dtype) -> BitsAndBytesConfig:
    """Return how transformers quantises the linear layers of a model, but its head, while it reads them.

        4bit   NF4: 16 levels, a scale for each 64 weights, 8 bits a scale: 4.13 bits a weight
        8bit   LLM.int8(): 255 levels, a scale for each output; inputs above 6 are multiplied in half precision

    Source: Dettmers et al., QLoRA (arXiv 2305.14314) and LLM.int8() (2208.07339).

    Args:
        bits: how many.
        dtype: of the products, and of the weights that are not quantised.

    Raises:
        UserError: if bitsandbytes or accelerate is not installed.
    """
    for needed in ("bitsandbytes", "accelerate"):
        if importlib.util.find_spec(needed) is None:
            raise UserError(f"load.quantize needs {needed}: pip install 'rl_lightning[bnb]'")
    # It says at every product that inputs are rounded to half precision on their way to 8 bits.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    if bits == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def is_quantized_layer(layer: nn.Module) -> bool:
    """Return whether a linear layer keeps its weight in 4 or 8 bits."""
    return type(layer).__module__.startswith("bitsandbytes.")


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, Linear4bit | Linear8bitLt]]:
    """Yield the names of the layers that keep their weights in 4 or 8 bits, and the layers."""
    yield from ((name, layer) for name, layer in model.named_modules() if is_quantized_layer(layer))


def is_quantized(model: nn.Module) -> bool:
    """Return whether any layer of a model keeps its weight in 4 or 8 bits."""
    return any(True for _ in quantized_layers(model))


def left_whole(model: nn.Module) -> str | None:
    """Return words for the log where bitsandbytes leaves much as it is, which is all that is no linear layer; None if no experts do."""
    packed = sum(count(layer.weight) for _, layer in quantized_layers(model))
    experts = sum(weight.numel() for weight in model.parameters() if weight.dim() == 3)
    if not packed or not experts:
        return None
    whole = sum(count(weight) for weight in model.parameters())
    return (
        f"{packed / whole:.0%} of its weights are quantised. {experts / whole:.0%} belong to experts and stay as they are: they are "
        "tensors of three dimensions, which bitsandbytes does not know"
    )


def keep_right(model: nn.Module) -> None:
    """Keep bitsandbytes from kernels for the CPU that are wrong here.

    One is without gradients: on CPUs with bfloat16 instructions weights of 4 bits are packed for it as soon as a layer is called in
    evaluation mode, in which forward passes run here while they train; see `rl_lightning.models.noise`. The other is
    mended by `read_scales_by_blocks`.
    """
    for _, layer in quantized_layers(model):
        if type(layer).__name__ == "Linear4bit":
            cast("Linear4bit", layer).support_avx512bf16_for_cpu = False
            read_scales_by_blocks()


@functools.cache
def read_scales_by_blocks() -> torch.library.Library:
    """Let bitsandbytes read a matrix of 4 bits right whose rows are no whole blocks of 64 weights, on the CPU.

    Blocks follow one another through the matrix, and one that a row does not fill goes on in the next. The kernel of release 0.50 for CPUs with AVX-512 looks for scales as if a block began with each row, and so multiplies rows of 16, 32,
    48, 96 or 160 by other weights than were stored. The same matrix as one long row is read right.

    Returns:
        The registration, for the whole process; it lasts while it is kept, which the cache does.
    """
    name = "bitsandbytes::dequantize_4bit"
    kernel = torch.library.get_kernel(name, "CPU")

    def read(
        keys: torch._C.DispatchKeySet,
        packed: Tensor,
        scales: Tensor,
        block: int,
        kind: str,
        shape: list[int],
        dtype: torch.dtype,
    ) -> Tensor:
        row = shape if shape[-1] % block == 0 else [1, math.prod(shape)]
        found: Tensor = kernel.call_boxed(keys, packed, scales, block, kind, row, dtype)
        return found.view(shape)

    mended = torch.library.Library("bitsandbytes", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a kernel was there before
        mended.impl(name, read, "CPU", with_keyset=True, allow_override=True)
    return mended


def whole_weight(layer: Linear4bit | Linear8bitLt) -> Tensor:
    """Return the weight that a layer multiplies by, (out, in)."""
    from bitsandbytes.functional import dequantize_4bit, int8_vectorwise_dequant

    weight = layer.weight.detach()
    if type(layer).__name__ == "Linear4bit":
        found: Tensor = dequantize_4bit(weight, cast("Params4bit", layer.weight).quant_state)
        return found
    # The scale of each output lies with the weight until the first pass, and with the layer's state after it.
    kept = cast("Linear8bitLt", layer).state.SCB
    return int8_vectorwise_dequant(weight, cast("Int8Params", layer.weight).SCB if kept is None else kept)


def is_packed(weight: Tensor) -> bool:
    """Return whether a parameter holds a weight in 4 or 8 bits."""
    return type(weight).__name__ in ("Params4bit", "Int8Params")


def beside(weight: Tensor) -> list[Tensor]:
    """Return the scales that a weight in 4 or 8 bits is multiplied by, as far as they lie with it; none for any other weight."""
    if type(weight).__name__ == "Int8Params":
        scales = cast("Int8Params", weight).SCB
        return [] if scales is None else [scales]
    if type(weight).__name__ != "Params4bit":
        return []
    outer = cast("Params4bit", weight).quant_state
    states = [outer, outer.state2]
    found = [getattr(state, name) for state in states if state is not None for name in _SCALES]
    return [one for one in found if isinstance(one, Tensor)]


def count(weight: Tensor) -> int:
    """Return how many numbers a parameter stands for: two a byte in 4 bits."""
    packed = type(weight).__name__ == "Params4bit"
    return math.prod(cast("Params4bit", weight).quant_state.shape) if packed else weight.numel()


def unquantized_outline(model: PreTrainedModel) -> PreTrainedModel:
    """Return a model of the same class without weights whose configuration says nothing of bits, to save plain weights with."""
    config = copy.deepcopy(model.config)
    del config.quantization_config
    with torch.device("meta"):
        plain = type(model)(config)
    if model.can_generate():
        plain.generation_config = model.generation_config
    return plain

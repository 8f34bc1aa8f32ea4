"""How a model is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rl_lightning.models.quantized import Bits
from rl_lightning.typed import Typed


@dataclass
class LoadOptions(metaclass=Typed):
    """How a model is loaded.

    Args:
        dtype: of the weights in memory. Train float32 weights with `precision: bf16-mixed` unless memory forbids it.
        attn_implementation: of transformers, such as `sdpa`, `eager` or `flash_attention_2`; transformers' default if null. With
            `flex_attention`, packed rows go through one compiled kernel, which needs a GPU, and all other rows through `sdpa`.
        pack: compute each prompt once for all its responses in a microbatch, and no padding. Needs plain causal attention in
            every layer, and `sdpa` or `flex_attention`; other models are padded. Changes memory and speed, not the gradient.
        gradient_checkpointing: recompute activations in the backward pass: about a third more time, far less memory. With `offload`
            the inputs of the layers, which is all that is kept, wait in the host's pinned memory, at the price of a copy there
            and back; on a CPU, where they are, that is the same as true.
        trust_remote_code: run Python code that comes with the model. Read that code before you turn it on.
        quantize: keep the weights of linear layers, but the head's, in `4bit` (NF4) or `8bit` (LLM.int8()); null for `dtype`, in which
            products and all other weights are. Only `lora` can train such a policy.
    """

    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    attn_implementation: str | None = None
    pack: bool = True
    gradient_checkpointing: bool | Literal["offload"] = False
    trust_remote_code: bool = False
    quantize: Bits | None = None

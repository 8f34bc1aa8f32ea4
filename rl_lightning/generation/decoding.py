"""The decoding step: a forward pass over the next token of every row in the slots."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeGuard, cast

import torch
from torch import Tensor
from torch.nn.functional import rms_norm
from transformers import LlamaForCausalLM, MistralForCausalLM, PreTrainedModel, Qwen2ForCausalLM, Qwen3ForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaDecoderLayer, LlamaModel, LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention, Qwen3RMSNorm

from rl_lightning.generation.slots import Slots, narrow
from rl_lightning.models.families import cache_argument
from rl_lightning.models.noise import hooked_by_others

#: Families whose step is the same: norms before attention and before the feed-forward layer, rotary positions.
_ALIKE = (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)

#: Takes the slots and the next token of each of their n rows, (n,) long; returns logits (n, V).
Step = Callable[[Slots, Tensor], Tensor]


def decoding_step(model: PreTrainedModel) -> Step:
    """Return the decoding step for a model.

    For families like Llama the step is written out here. In transformers' forward, half the time of a step over few rows is
    Python and small kernels: a norm takes six operations, a rotation five, and every layer checks its arguments. Any other
    model, and one with hooks or with layers that are not its family's own, takes its step through its forward.
    """
    return _written_out(model) if _is_plain(model) else _through_forward(model)


def _through_forward(model: PreTrainedModel) -> Step:
    name = cache_argument(model)

    def step(slots: Slots, tokens: Tensor) -> Tensor:
        logits: Tensor = model(**slots.read(tokens), **{name: slots.cache}, use_cache=True).logits[:, -1]
        return logits

    return step


def _written_out(model: LlamaForCausalLM) -> Step:
    body: LlamaModel = model.model
    layers = cast("list[LlamaDecoderLayer]", body.layers)
    attend = ALL_ATTENTION_FUNCTIONS[model.config._attn_implementation]

    def step(slots: Slots, tokens: Tensor) -> Tensor:
        given = slots.read(tokens)
        states = body.embed_tokens(given["input_ids"])
        rotation = _rotation(*body.rotary_emb(states, position_ids=given["position_ids"]))
        for layer, cache in zip(layers, slots.layers, strict=True):
            attention = layer.self_attn
            query, key, value = _projected(attention, narrow(_normed(layer.input_layernorm, states)), rotation)
            seen = cache.update(key, value)
            read, _ = attend(attention, query, *seen, given["attention_mask"], scaling=attention.scaling)
            states = states + attention.o_proj(read.flatten(2))
            states = states + layer.mlp(narrow(_normed(layer.post_attention_layernorm, states)))
        logits: Tensor = model.lm_head(_normed(body.norm, states))[:, -1]
        return logits

    return step


def _projected(
    attention: LlamaAttention | Qwen3Attention, states: Tensor, rotation: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values, (n, heads, 1, D) each, the first two rotated.

    Args:
        attention: the layer.
        states: (n, 1, hidden), after the norm.
        rotation: see `_rotation`.
    """
    query, key, value = (
        layer(states).unflatten(-1, (-1, attention.head_dim))
        for layer in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    if isinstance(attention, Qwen3Attention):
        query, key = _normed(attention.q_norm, query), _normed(attention.k_norm, key)
    # Queries and keys are rotated together, (n, 1, heads + kv_heads, D): x cos + roll(x) sin, half the operations.
    both = torch.cat([query, key], 2)
    cos, sin = rotation
    rotated = narrow(torch.addcmul(both * cos, both.roll(attention.head_dim // 2, -1), sin))
    query, key = rotated.split([query.shape[2], key.shape[2]], 2)
    return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)


def _rotation(cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Return the factors of x and of x with its halves exchanged, (n, 1, 1, D) each.

        [x1 cos - x2 sin, x2 cos + x1 sin] = x [cos, cos] + [x2, x1] [-sin, sin]

    Args:
        cos, sin: (n, 1, D).
    """
    first, second = sin.chunk(2, -1)
    return cos.unsqueeze(2), torch.cat([-first, second], -1).unsqueeze(2)


def _normed(norm: LlamaRMSNorm | Qwen3RMSNorm, states: Tensor) -> Tensor:
    return rms_norm(states, norm.weight.shape, norm.weight, norm.variance_epsilon)


def _is_plain(model: PreTrainedModel) -> TypeGuard[LlamaForCausalLM]:
    """Tell whether the step written out computes what the model's forward does: a known family with its own layers, of which
    none has been replaced, patched or hooked."""
    if type(model) not in _ALIKE or model.config._attn_implementation not in ALL_ATTENTION_FUNCTIONS:
        return False
    passed_over = [model, model.model, *model.model.layers]
    passed_over += [layer.self_attn for layer in model.model.layers]
    passed_over += [part for part in model.modules() if hasattr(part, "variance_epsilon")]
    return all(
        type(part).__module__ == type(model).__module__ and "forward" not in vars(part) and not hooked_by_others(part)
        for part in passed_over
    )

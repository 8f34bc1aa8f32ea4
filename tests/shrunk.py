"""A random model of any family that transformers knows, small, and with all of its noise switched on."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from tests.tiny import EOS, PAD, tiny_tokenizer

VOCABULARY = 128
#: More parameters than this are not small.
LARGEST = 8_000_000
RATE = 0.3

AUTO = {"causal": AutoModelForCausalLM, "classifier": AutoModelForSequenceClassification}
FAMILIES = {
    "causal": sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
    "classifier": sorted(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES),
}

#: Names of integers in a configuration → what a small model has there.
_SMALLER = [
    (r".*(token_id|token_index)|(unk|mask|pad|bos|eos|sep|eod)_(index|id)", lambda v: v if v < VOCABULARY else 3 + v % (VOCABULARY - 8)),
    (r".*vocab.*|codebook_size", lambda v: min(v, VOCABULARY)),
    (r".*(kv_heads|key_value_heads|kv_n_heads)", lambda v: min(v, 2)),
    (r".*(head_dim|d_head|dim_head|d_kv)|kv_channels|rotary_dim", lambda v: min(v, 16)),
    (r".*(heads|n_head)", lambda v: min(v, 4)),
    (r"n_layers?|num_layers|depth|num_blocks|.*(encoder|decoder|hidden)_layers|(n|num)_.*_layers", lambda v: min(v, 2)),
    (r".*(num_experts|local_experts|routed_experts|n_experts)", lambda v: min(v, 4)),
    (r".*(experts_per_tok|experts_per_token|topk|top_k|moe_k)", lambda v: min(v, 2)),
    (r".*(n_group|topk_group|num_expert_group|n_groups|num_groups)", lambda v: 1),
    (r".*(max_position|n_positions|position_embeddings|n_ctx|max_seq_len|model_max_length).*", lambda v: min(v, 64)),
    (r"d_model|n_embd|dim|n_inner|dff|dim_ff|d_ff|d_inner|ffn.*|.*(_size|_dim|rank|width)", lambda v: min(v, 64)),
]  # fmt: skip

_MLA = {"qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 16, "head_dim": 16, "num_key_value_heads": 4}
#: What cannot be told from the names.
_OWN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        ("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "minicpm3", "mistral4", "sarvam_mla", "youtu"),
        _MLA,
    ),
    **{key: {"head_dim": 16} for key in ("hunyuan_v1_dense", "hunyuan_v1_moe", "ministral")},
    **{key: {"mamba_n_heads": 8, "mamba_d_head": 16} for key in ("bamba", "granitemoehybrid")},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8}},
    "mamba2": {"num_heads": 8, "head_dim": 16, "hidden_size": 64},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "nemotron": {"num_key_value_heads": 2},
    "reformer": {"is_decoder": True},
    "t5": {"decoder_start_token_id": PAD},
}  # fmt: skip


def small_config(family: str) -> PreTrainedConfig:
    """Return the configuration of a family at its defaults, but for its sizes."""
    kind = CONFIG_MAPPING[family]
    values = _smaller(kind, kind().to_dict()) | _OWN.get(family, {})
    config = kind(**values)
    for part in {id(one): one for one in (config, config.get_text_config())}.values():
        part.pad_token_id, part.eos_token_id = PAD, EOS
    return config


def _smaller(kind: Any, values: dict[str, Any]) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    for name, value in values.items():
        inner = kind.sub_configs.get(name)
        if isinstance(value, dict) and inner is not None:
            part = value.get("model_type")
            if part in CONFIG_MAPPING:
                inner = CONFIG_MAPPING[part]
            changed[name] = _smaller(inner, value)
            changed[name] |= {"model_type": part} if part else {}
        elif isinstance(value, int) and not isinstance(value, bool):
            rule = next((rule for pattern, rule in _SMALLER if re.fullmatch(pattern, name)), None)
            if rule is not None and rule(value) != value:
                changed[name] = rule(value)
    return changed


def switch_on_noise(config: PreTrainedConfig, rate: float = RATE) -> list[str]:
    """Set every option of a configuration that sounds like noise, those of parts included, and return their names."""
    names = []
    for name, value in list(vars(config).items()):
        number = value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))
        if number and re.search("drop|jitter|noise", name):
            try:
                setattr(config, name, rate)
            except StrictDataclassError:  # a field for integers
                continue
            names.append(name)
    for name in config.sub_configs:
        part = getattr(config, name, None)
        names += [] if part is None else [f"{name}.{inner}" for inner in switch_on_noise(part, rate)]
    return names


def save_small(kind: str, family: str, directory: Path) -> list[str]:
    """Save a small noisy model of a family, and return its noise options.

    Args:
        kind: `causal` or `classifier`.
        family: its `model_type`.
        directory: where to; a tokenizer is saved beside it.

    Raises:
        Exception: of any kind, by transformers, if it cannot be built small or lacks a package.
    """
    config = small_config(family)
    noise = switch_on_noise(config)
    if kind == "classifier":
        config.num_labels = 1
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in AUTO[kind].from_config(config).parameters())
    if size > LARGEST:
        raise ValueError(f"not small: {size:,} parameters")
    torch.manual_seed(0)
    model = AUTO[kind].from_config(config)
    if "set_default_language" in dir(model):  # X-MOD, and whatever else has an adapter a language
        model.set_default_language("en_XX")
    logits(model.eval(), 5)
    model.save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return noise


def logits(model: Any, length: int = 6) -> torch.Tensor:
    """Return the logits of two texts, which end: some classifiers read their score there."""
    ids = torch.arange(3, 3 + 2 * length).reshape(2, length)
    ids[:, -1] = EOS
    extra = {"use_cache": False} if "use_cache" in inspect.signature(type(model).forward).parameters else {}
    values: torch.Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids), **extra).logits
    return values

"""The plain model of an adapted or quantised one, weight by weight; test_adapters.py and test_quantized.py compare what it computes."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from rl_lightning.models import is_stored_by_name, plain_weights, save_plain
from rl_lightning.strategies import WholeWeights, full_state_dict

SMALL = {"vocab_size": 20, "bos_token_id": 1, "eos_token_id": 2}
LLAMA = SMALL | {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.mark.parametrize(
    ("kind", "config", "by_name"),
    [
        (LlamaForCausalLM, LlamaConfig(**LLAMA), True),
        (LlamaForCausalLM, LlamaConfig(**LLAMA, tie_word_embeddings=True), True),
        (GPT2LMHeadModel, GPT2Config(**SMALL, n_layer=1, n_embd=16, n_head=2), True),
        (MixtralForCausalLM, MixtralConfig(**LLAMA, num_key_value_heads=1, num_local_experts=2), False),
    ],
)
def test_it_is_known_which_models_are_stored_under_the_names_that_they_have(kind, config, by_name, tmp_path):
    """A model of experts keeps them as one tensor, its file one by one: what this finds out without writing one, a file shows."""
    model = kind(config)
    save_plain(model, full_state_dict(model), tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    held = dict(plain_weights(model, WholeWeights(model)))
    same = stored.keys() <= held.keys() and all(torch.equal(stored[name], held[name]) for name in stored)
    assert is_stored_by_name(model) == same == by_name

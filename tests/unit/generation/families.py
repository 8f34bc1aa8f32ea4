"""Tiny random models of several families, on the vocabulary of `tests.tiny`."""

from functools import cache

import torch
from transformers import (
    FalconH1Config,
    FalconH1ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    Lfm2Config,
    Lfm2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
)

from tests.tiny import CHARACTERS, tiny_model

VOCABULARY = 3 + len(CHARACTERS)
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def llama():
    return tiny_model()


def gpt2():
    """Learned positions, dropout of 0.1."""
    torch.manual_seed(1)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, initializer_range=0.2, **sizes))


def lfm2():
    """A layer of convolution and one of attention: two kinds of state in one cache."""
    torch.manual_seed(2)
    layers = {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False}
    return Lfm2ForCausalLM(Lfm2Config(**SIZES, **layers, initializer_range=0.1))


def falcon_h1():
    """Attention and a recurrence side by side in every layer."""
    torch.manual_seed(3)
    heads = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8}
    return FalconH1ForCausalLM(FalconH1Config(**SIZES, **heads, mamba_chunk_size=8, initializer_range=0.1))


def mamba():
    """No attention, and a cache of another name."""
    torch.manual_seed(4)
    sizes = {"hidden_size": 32, "state_size": 4, "num_hidden_layers": 2}
    return MambaForCausalLM(MambaConfig(vocab_size=VOCABULARY, initializer_range=0.3, **sizes))


FAMILIES = {"llama": llama, "gpt2": gpt2, "lfm2": lfm2, "falcon_h1": falcon_h1, "mamba": mamba}


@cache
def family(name):
    """Return a model in evaluation mode; tests share it and leave it as it is."""
    return FAMILIES[name]().eval()

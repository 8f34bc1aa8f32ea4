"""A model so small that a test may train it."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import LlamaRMSNorm

CHARACTERS = "0123456789+-=;#"
PAD, EOS, UNK = 0, 1, 2


def _norm(self: LlamaRMSNorm, hidden: Tensor) -> Tensor:
    """Transformers' own, but for float64, which it rounds to float32: what must agree to 1e-12 would to 1e-7."""
    wide = hidden if hidden.dtype == torch.float64 else hidden.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
    return self.weight * wide.to(hidden.dtype)


LlamaRMSNorm.forward = _norm


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Return one token a character."""
    vocabulary = {token: number for number, token in enumerate(["<pad>", "<eos>", "<unk>", *CHARACTERS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def tiny_model() -> LlamaForCausalLM:
    """Return a random Llama of a few thousand parameters."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=3 + len(CHARACTERS),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=PAD,
        initializer_range=0.1,
    )
    return LlamaForCausalLM(config)


def save_tiny_policy(directory: Path) -> str:
    """Save it in Hugging Face format and return the directory."""
    tiny_model().save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return str(directory)


def halved(policy: str, directory: Path) -> Path:
    """Save a policy with half of every weight of another one, and return the directory."""
    model = AutoModelForCausalLM.from_pretrained(policy)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(0.5)
    shutil.copytree(policy, directory)
    model.save_pretrained(directory)
    return directory

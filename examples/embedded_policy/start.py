"""Create the untrained model of the embedded policy: a small Llama with a character tokenizer.

Usage: python examples/embedded_policy/start.py DIRECTORY

`make embedded` runs this, then `rl_lightning fit --config configs/sft.yaml` on it.
"""

from __future__ import annotations

import sys

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHARACTERS = "0123456789+-*/=;#(), .?:"
SPECIAL = ["<pad>", "<eos>", "<unk>"]


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per character."""
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *CHARACTERS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )


def model(vocabulary_size: int) -> LlamaForCausalLM:
    """Return a Llama of about half a million parameters."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary_size,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=128,
            # Initial weights four times the usual size, and a short rotary period. With the usual ones the model learns the
            # form of the answers long before it learns which term a step adds.
            initializer_range=0.08,
            rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=SPECIAL.index("<eos>"),
            pad_token_id=SPECIAL.index("<pad>"),
        )
    )


def main(directory: str) -> None:
    """Save model and tokenizer in the directory given on the command line."""
    characters = tokenizer()
    model(len(characters)).save_pretrained(directory)
    characters.save_pretrained(directory)
    print(f"saved to {directory}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])

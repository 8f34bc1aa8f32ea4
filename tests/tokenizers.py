"""Tokenizers of ten kinds, built here: how special tokens and chat templates of well-known models behave, on a vocabulary of bytes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
#: As Qwen3's with thinking off: an answer gets an empty thought, and a thought of an earlier turn is left out.
EMPTY_THOUGHT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% set parts = m.content.split('</think>') %}"
    "{% if loop.last %}<think>\n{{ parts[0].split('<think>')[-1].strip('\n') if parts | length > 1 else '' }}\n</think>\n\n{% endif %}"
    "{{ parts[-1].lstrip('\n') }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
#: As DeepSeek-R1's: the prompt opens a thought, and thoughts are cut out of every answer.
OPEN_THOUGHT = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<|User|>{{ m.content }}"
    "{% else %}<|Assistant|>{{ m.content.split('</think>')[-1] }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ m.content | trim }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content | trim }} {{ eos_token }}{% else %}{{ raise_exception('no system') }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
#: As Phi-3's: a conversation ends with EOS behind the end of its last turn, unless a turn is to come.
PHI3 = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
NEEDS_SYSTEM = (
    "{% if messages[0].role != 'system' %}{{ raise_exception('a system message, please') }}{% endif %}" + CHATML
)
NO_END = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"


@dataclass(frozen=True)
class Kind:
    """One kind of tokenizer.

    Args:
        specials: added special tokens, in the order of their ids.
        around: what the tokenizer puts around a text, such as `<s> $A`.
        template: of chats; None for none.
        names: bos_token, eos_token and so on.
        end: what a written response ends with, as tokens.
        texts: added tokens that are no special ones.
    """

    specials: tuple[str, ...]
    names: dict[str, str]
    end: tuple[str, ...]
    around: str | None = None
    template: str | None = None
    texts: tuple[str, ...] = ()


QWEN = {"eos_token": "<|endoftext|>", "pad_token": "<|pad|>"}
CHAT = ("<|pad|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>")

KINDS = {
    "gpt2": Kind(("<|pad|>", "<|endoftext|>"), QWEN, ("<|endoftext|>",)),
    "bert": Kind(
        ("[PAD]", "[CLS]", "[SEP]"), {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}, ("[SEP]",), "[CLS] $A [SEP]"
    ),
    "roberta": Kind(
        ("<s>", "<pad>", "</s>"),
        {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "pad_token": "<pad>"},
        ("</s>",),
        "<s> $A </s>",
    ),
    "t5": Kind(("<pad>", "</s>"), {"eos_token": "</s>", "pad_token": "<pad>"}, ("</s>",), "$A </s>"),
    "llama2-plain": Kind(("<unk>", "<s>", "</s>"), {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>"}, ("</s>",), "<s> $A"),
    "llama2": Kind(
        ("<unk>", "<s>", "</s>"), {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>"}, ("</s>",), "<s> $A", LLAMA2
    ),
    "llama3": Kind(
        ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|pad|>"),
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>", "pad_token": "<|pad|>"},
        ("<|eot_id|>",),
        "<|begin_of_text|> $A",
        LLAMA3,
    ),
    "qwen-base": Kind(CHAT, QWEN, ("<|im_end|>",), None, CHATML),
    "qwen-thought": Kind(CHAT, QWEN, ("<|im_end|>",), None, EMPTY_THOUGHT, ("<think>", "</think>")),
    "chatml-bos": Kind(("<s>", "</s>", *CHAT), {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<|pad|>"}, ("<|im_end|>",), "<s> $A", CHATML),
    "chatml-no-special": Kind(("<|pad|>", "<|endoftext|>"), QWEN, ("<|im_end|>",), None, CHATML, ("<|im_end|>",)),
    "gemma": Kind(
        ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
        {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"},
        ("<end_of_turn>",),
        "<bos> $A",
        GEMMA,
    ),
    "mistral": Kind(
        ("<unk>", "<s>", "</s>"), {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>"}, ("</s>",), "<s> $A", MISTRAL
    ),
    "phi3": Kind(
        ("<|pad|>", "<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>"), QWEN, ("<|end|>",), None, PHI3
    ),
    "r1": Kind(
        ("<s>", "</s>", "<|User|>", "<|Assistant|>", "<pad>"),
        {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"},
        ("</s>",),
        "<s> $A",
        OPEN_THOUGHT,
    ),
    "needs-system": Kind(CHAT, QWEN, ("<|im_end|>",), None, NEEDS_SYSTEM),
    "text-end": Kind(("<|pad|>", "<|endoftext|>"), QWEN, tuple("<|im_end|>"), None, CHATML),
    "no-end": Kind(("<|pad|>", "<|endoftext|>"), QWEN, ("<|endoftext|>",), None, NO_END),
}  # fmt: skip


def build(name: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer of one token a byte, with the special tokens and the template of a kind."""
    kind = KINDS[name]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(letters)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in kind.specials])
    core.add_tokens([AddedToken(token, special=False, normalized=False) for token in kind.texts])
    if kind.around:
        core.post_processor = processors.TemplateProcessing(
            single=kind.around, special_tokens=[(token, core.token_to_id(token)) for token in kind.specials]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **kind.names)
    tokenizer.chat_template = kind.template
    return tokenizer


def policy(name: str, directory: Path, context: int = 128) -> tuple[str, PreTrainedTokenizerFast]:
    """Save a random policy that reads `context` tokens, with a tokenizer of a kind; return its directory and the tokenizer."""
    tokenizer = build(name)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=context, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory), tokenizer

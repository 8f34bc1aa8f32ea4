"""From text to token ids, for tokenizers of many kinds: what is trained on, what ends it, and what a judge sees."""

import gc
import logging
import os

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from rl_lightning.data.offline.written import WrittenReader
from rl_lightning.data.prompts import encode_prompts, text_format
from rl_lightning.data.sources.base import Example
from rl_lightning.models import ClassifierFiles, Judge, PolicyFiles, Text
from rl_lightning.stopping import Ends, StopStrings
from rl_lightning.text import TextFormat
from rl_lightning.text.tokens import Tokens, in_bulk
from tests.tokenizers import KINDS, build

LIMITS = {"max_prompt_length": None, "context_length": None, "max_new_tokens": 8}
SYSTEM = {"needs-system": "Add."}
NO_TEMPLATE = [name for name, kind in KINDS.items() if kind.template is None]


def encoded(tokenizer, prompt, response, **options):
    example = Example(prompt, response=response, location="f:1")
    reader = WrittenReader(text_format(tokenizer, options.get("chat_template")))
    (made,) = encode_prompts([example], tokenizer, **LIMITS, add_written=reader, **options)
    return made


def tokens(tokenizer, ids):
    return tokenizer.convert_ids_to_tokens(ids)


# ----------------------------------------------------------------------------------------------- what is trained on


@pytest.mark.parametrize("name", KINDS)
def test_an_end_that_is_written_comes_once_however_it_is_written(name):
    tokenizer = build(name)
    form = TextFormat(tokenizer, tokenizer.chat_template is not None)
    turn, eos = form.turn_end.text, tokenizer.eos_token or tokenizer.sep_token
    ends = [eos, eos + "\n", eos + eos]
    if turn.strip():
        ends += [turn, form.turn_end.after, f"{turn}\n", f"{turn.strip()}{eos}", f"{turn.strip()}\n{eos}\n"]
    rows = [encoded(tokenizer, "1+2=", f"3{end}", system_prompt=SYSTEM.get(name)).written[0] for end in ["", *ends]]
    assert [row == rows[0] for row in rows] == [True] * len(rows)


@pytest.mark.parametrize("name", KINDS)
def test_a_response_ends_once_with_what_ends_a_turn(name):
    tokenizer = build(name)
    made = encoded(tokenizer, "1+2=", "3", system_prompt=SYSTEM.get(name))
    row, end = tokens(tokenizer, [*made.input_ids, *made.written[0]]), KINDS[name].end
    assert tuple(row[-len(end) :]) == end and row[-len(end) - 1] != end[-1]
    if first := tokenizer.bos_token or tokenizer.cls_token:
        template = KINDS[name].template
        begins = template is None or "bos_token" in template  # with a template, it alone says what stands in front
        assert [place for place, token in enumerate(row) if token == first] == [0] * begins
    # What ends a written response ends a sampled one too.
    ends = Ends.of(TextFormat(tokenizer, tokenizer.chat_template is not None), [tokenizer.eos_token_id or 0])
    if tokenizer.eos_token_id is not None:
        assert ends.stop(made.written[0]) and not ends.stop(made.written[0][:-1])
        assert (
            ends.text(made.written[0]).replace("<think>\n\n</think>\n\n", "").strip("\n ").removeprefix("</think>\n\n")
            == "3"
        )


@pytest.mark.parametrize(
    ("name", "response", "wanted"),
    [
        ("llama2", "3", " 3 </s>"),
        ("llama2", "\n3 ", " 3 </s>"),
        ("llama2", "3</s>", " 3 </s>"),
        ("llama3", "3", "3<|eot_id|>"),
        ("gemma", " 3\n", "3<end_of_turn>"),
        ("mistral", "3", " 3</s>"),
        ("qwen-base", "3", "3<|im_end|>"),
        ("qwen-base", "3<|im_end|>", "3<|im_end|>"),
        ("phi3", "3", "3<|end|>"),
        ("no-end", "3", "3<|endoftext|>"),
        ("text-end", "3", "3<|im_end|>"),
        ("qwen-thought", "3", "<think>\n\n</think>\n\n3<|im_end|>"),
        ("qwen-thought", "<think>\nadd\n</think>\n\n3", "<think>\nadd\n</think>\n\n3<|im_end|>"),
        # The prompt ends in `<think>\n`, which this template's answers lack.
        ("r1", "3", "\n</think>\n\n3</s>"),
        ("r1", "<think>\nadd\n</think>\n\n3", "add\n</think>\n\n3</s>"),
        ("r1", "add</think>3", "add</think>3</s>"),
        ("gpt2", " 3", " 3<|endoftext|>"),
        ("gpt2", "3<|endoftext|>", "3<|endoftext|>"),
        ("t5", "3", "3</s>"),
    ],
)
def test_a_response_is_what_the_template_adds(name, response, wanted):
    tokenizer = build(name)
    made = encoded(tokenizer, "1+2=", response)
    assert tokenizer.decode(made.written[0]) == wanted


@pytest.mark.parametrize("name", [name for name in KINDS if name not in (*NO_TEMPLATE, "r1", "needs-system")])
def test_prompt_and_response_are_the_beginning_of_the_rendered_conversation(name):
    tokenizer = build(name)
    prompt = [
        {"role": "user", "content": "1+2="},
        {"role": "assistant", "content": "3"},
        {"role": "user", "content": "2+2="},
    ]
    made = encoded(tokenizer, prompt, "4")
    whole = tokenizer.apply_chat_template(
        [*prompt, {"role": "assistant", "content": "4"}], tokenize=True, return_dict=False
    )
    row = [*made.input_ids, *made.written[0]]
    if KINDS[name].end == ("<|endoftext|>",):  # the template marks no end: EOS stands for it
        row.pop()
    assert row == whole[: len(row)]
    assert tokenizer.decode(whole[len(row) :]).strip() in ("", tokenizer.eos_token)


def test_an_answer_that_the_template_rewrites_is_kept_and_told_of_once(caplog):
    tokenizer = build("r1")
    form = TextFormat(tokenizer, chat=True)
    reader = WrittenReader(form)
    examples = [Example("1=", response="<think>\nwell\n</think>\n\n1", location=f"f:{n}") for n in range(3)]
    with caplog.at_level(logging.WARNING):
        made = encode_prompts(examples, tokenizer, **LIMITS, add_written=reader)
    assert tokenizer.decode(made[0].input_ids).endswith("<think>\n")
    assert tokenizer.decode(made[2].written[0]) == "well\n</think>\n\n1</s>"
    assert caplog.text.count("renders the conversation differently") == 1


def test_a_bos_that_the_prompt_brings_is_not_doubled():
    for name in ("llama2-plain", "roberta"):
        tokenizer = build(name)
        assert encoded(tokenizer, "<s>1=", "1").input_ids == encoded(tokenizer, "1=", "1").input_ids


# ------------------------------------------------------------------------------------------------------------- judging


def classifier(tokenizer, directory):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_labels=1,
        max_position_embeddings=128, pad_token_id=tokenizer.pad_token_id, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    LlamaForSequenceClassification(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return ClassifierFiles(str(directory))


@pytest.mark.parametrize("name", KINDS)
def test_a_judge_sees_the_tokens_that_training_made(name, tmp_path):
    judge = Judge(classifier(build(name), tmp_path))
    tokenizer = judge.files.tokenizer
    made = encoded(tokenizer, "1+2=", "3", system_prompt=SYSTEM.get(name))
    (row,), cut = judge.encode([Text(made.text, "3", True, made.messages)])
    assert row == [*made.input_ids, *made.written[0]] and cut == [False]
    (open_row,), _ = judge.encode([Text(made.text, "3", False, made.messages)])
    assert open_row == row[: len(open_row)] and len(open_row) < len(row)
    # A text in the form that the policy read, and nothing else, is known for what it is.
    if name not in ("llama2", "mistral", "qwen-thought", "r1"):
        assert judge.encode([Text(made.text, "3", True)])[0] == [row]


def test_a_judge_without_a_template_reads_what_the_user_said(tmp_path):
    judge = Judge(classifier(build("llama2-plain"), tmp_path))
    asked = [{"role": "user", "content": "1+2="}]
    (row,), _ = judge.encode([Text("<|im_start|>user\n1+2=<|im_end|>\n", "3", True, asked)])
    assert judge.files.tokenizer.decode(row) == "<s>1+2=3</s>"


# ------------------------------------------------------------------------------------------------------------ stopping


def test_stop_ids_hold_the_end_of_a_turn_beside_every_eos(tmp_path):
    tokenizer = build("qwen-base")
    LlamaConfig(vocab_size=300, eos_token_id=7).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    files = PolicyFiles(str(tmp_path))
    assert tokens(files.tokenizer, sorted(files.stop_ids - {7})) == ["<|endoftext|>", "<|im_end|>"]
    ends = Ends.of(TextFormat(files.tokenizer, chat=True), files.stop_ids, ["Q:"], [9])
    assert ends.ids == files.stop_ids | {9} and ends.strings.strings == ("Q:",)
    assert "<|im_end|>" in str(ends) and "'Q:'" in str(ends)


def test_a_string_ends_a_response_at_the_token_that_completes_it():
    tokenizer = build("text-end")
    strings = StopStrings(tokenizer, ("é#",))
    ids = tokenizer("aé#é#b").input_ids
    assert strings.end(ids) == len(tokenizer("aé#").input_ids)
    assert strings.end(ids[:4], start=3) == 4
    assert strings.end(ids[:3]) is None
    # However far behind the beginning.
    assert strings.end(tokenizer("x" * 500 + "é#").input_ids) == 503


def test_the_text_end_of_a_turn_is_no_part_of_the_answer():
    tokenizer = build("text-end")
    ends = Ends.of(TextFormat(tokenizer, chat=True), [tokenizer.eos_token_id], ["###"])
    assert ends.turn_end == "<|im_end|>" and ends.strings.strings == ("<|im_end|>", "###")
    assert ends.text(tokenizer("3<|im_end|>").input_ids) == "3"
    assert ends.text(tokenizer("3###").input_ids) == "3###"
    assert ends.stop(tokenizer("3<|im_end|>").input_ids) and not ends.stop(tokenizer("3<|im_end|").input_ids)


def test_batches_are_encoded_on_all_cores_and_forks_are_told_of_one():
    seen = []
    tokenizer = build("gpt2")
    tokens = Tokens(tokenizer)
    texts = [f"{n} and {n + 1}" for n in range(50)]
    expected = tokens.ids(texts, special=False)
    with in_bulk():
        seen.append(os.environ["TOKENIZERS_PARALLELISM"])
        assert tokens.ids(texts, special=False) == expected
        assert not gc.isenabled()
    assert gc.isenabled()
    assert seen == ["true"] and os.environ["TOKENIZERS_PARALLELISM"] == "false"
    with pytest.raises(ValueError), in_bulk():
        raise ValueError
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"

"""What the policy hears between its turns: the tokens that training on a written conversation has there."""

from __future__ import annotations

import logging
from itertools import groupby
from pathlib import Path

import pytest
from transformers.utils import get_json_schema

from rl_lightning.data.encoded import EncodedPrompt
from rl_lightning.data.prompts import text_format
from rl_lightning.data.sources.base import Example
from rl_lightning.text import CallFormat, Dialogue, TextFormat, written_rows
from tests.games import add
from tests.tokenizers import KINDS, build

#: Templates that show tools and write calls: after Hermes, Llama 3.1 and Mistral, and one that writes no JSON.
TOOLS = {
    "hermes": (
        "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
        "{% for m in messages %}{% if m.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ m.content }}\n</tool_response><|im_end|>\n"
        "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>\n"
        '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}<|im_end|>\n{% endif %}'
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "llama": (
        "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>{% endif %}{% for m in messages %}"
        "<|im_start|>{{ 'ipython' if m.role == 'tool' else m.role }}\n\n{% if m.tool_calls %}"
        '{"name": "{{ m.tool_calls[0].function.name }}", "parameters": {{ m.tool_calls[0].function.arguments | tojson }}}'
        "{% else %}{{ m.content | trim }}{% endif %}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n\n{% endif %}"
    ),
    "mistral": (
        "{% for m in messages %}{% if m.role == 'user' %}{% if tools %}[TOOLS]{{ tools | tojson }}[/TOOLS]{% endif %}[INST]{{ m.content }}[/INST]"
        "{% elif m.role == 'tool' %}{% if messages[loop.index0 - 1].role == 'user' %}{{ raise_exception('a call first') }}{% endif %}"
        "[RESULT]{{ m.content }}[/RESULT]{% elif m.tool_calls %}[CALLS][{% for c in m.tool_calls %}"
        '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}{{ ", " if not loop.last }}'
        "{% endfor %}]<|im_end|>{% else %}{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
    ),
}
PLAIN = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls or [] %}CALL {{ c.function.name }} {{ c.function.arguments.values() | join(' ') }}{% endfor %}<|im_end|>\n{% endfor %}{% if tools %}{{ tools | length }}{% endif %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
ASKED = [{"role": "user", "content": "3+4=?"}]
SCHEMAS = [get_json_schema(add)]
CALLS = [{"type": "function", "function": {"name": "add", "arguments": {"a": 3, "b": 4}}}]


def tool_tokenizer(template):
    tokenizer = build("qwen-base")
    tokenizer.add_tokens(["<tool_call>", "</tool_call>"])
    tokenizer.chat_template = template
    return tokenizer


def stretches(form, prompt, turns):
    """Return the tokens of a written conversation: what is learnt and what is read, in turn."""
    (row,) = written_rows(form, [prompt], [turns])
    learnt = row.learnt or [True] * len(row.ids)
    pairs = groupby(zip(row.ids, learnt, strict=True), lambda pair: pair[1])
    return [(mine, [token for token, _ in part]) for mine, part in pairs]


def read(form, extra=None):
    """Return the prompt as the policy reads it."""
    (text,) = form.render([ASKED], [extra or {}])
    return EncodedPrompt(Example(ASKED, template=extra or {}), form.ids([text])[0], text, ASKED)


CHATS = [name for name, kind in KINDS.items() if kind.template is not None and name not in ("needs-system", "no-end")]


@pytest.mark.parametrize("name", CHATS)
def test_what_follows_a_turn_is_what_training_reads_there(name):
    form = text_format(build(name), None)
    prompt, more = read(form), {"role": "user", "content": "+4 ="}
    turns = [
        {"role": "assistant", "content": "7"},
        more,
        {"role": "assistant", "content": "11"},
        more,
        {"role": "assistant", "content": "15"},
    ]
    parts, dialogue = stretches(form, prompt, turns), Dialogue(form)
    assert [mine for mine, _ in parts] == [True, False, True, False, True]
    for place in (0, 1):
        said, before = parts[2 * place][1], [*ASKED, *turns[: 2 * place]]
        follows = dialogue.follows(said, before, turns[2 * place], dialogue.messages("+4 ="), {})
        assert follows == parts[2 * place + 1][1]
        # A turn that was cut off has no end: the reply brings it.
        end = form.tokens.ids([form.turn_end.text], special=False)[0]
        assert (
            dialogue.follows(said[: -len(end)], before, turns[2 * place], dialogue.messages("+4 ="), {})
            == end + follows
        )


@pytest.mark.parametrize("name", TOOLS)
def test_what_tools_say_is_what_training_reads_there_and_calls_are_read_off_ids(name):
    tokenizer = tool_tokenizer(TOOLS[name])
    form, extra = TextFormat(tokenizer, True), {"tools": SCHEMAS}
    prompt, calls = read(form, extra), CallFormat(tokenizer, SCHEMAS)
    turns = [
        {"role": "assistant", "content": "", "tool_calls": CALLS},
        {"role": "tool", "name": "add", "content": "seven"},
        {"role": "assistant", "content": "7"},
    ]
    (_, called), (_, heard), (_, final) = stretches(form, prompt, turns)
    dialogue = Dialogue(form, calls=calls)
    dialogue.check(ASKED, extra, ["tool"] if name == "llama" else ["user", "tool"])
    turn = dialogue.said("", called, prompt.text)
    assert turn["tool_calls"] == CALLS
    assert dialogue.follows(called, ASKED, turn, turns[1:2], extra) == heard
    assert "tool_calls" not in dialogue.said("7", final, prompt.text)


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ('<tool_call>{"name":"add","arguments":{"a":1}}</tool_call>', [("add", {"a": 1})]),
        ('Let me.\n<tool_call>\n{"name": "add", "arguments": "{\\"a\\": 1}"}\n', [("add", {"a": 1})]),
        (
            '<tool_call>{"name": "f", "arguments": {}}</tool_call><tool_call>{"name": "g"}</tool_call>',
            [("f", {}), ("g", {})],
        ),
        ('<tool_call>{"name": "add", "arguments": {"a": 1</tool_call>', []),
        ('<tool_call>{"name": 3, "arguments": {}}</tool_call>', []),
        ("<tool_call>add(1, 2)</tool_call>", []),
        ('{"name": "add", "arguments": {"a": 1}}', []),
    ],
)
def test_calls_are_read_however_they_are_spelt_and_malformed_ones_are_none(text, calls):
    tokenizer = tool_tokenizer(TOOLS["hermes"])
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    _, found = CallFormat(tokenizer, SCHEMAS).read([*ids, tokenizer.convert_tokens_to_ids("<|im_end|>")], text, "")
    assert [(one["name"], one["arguments"]) for one in found] == calls


def test_a_response_template_goes_first():
    tokenizer = tool_tokenizer(PLAIN)
    with pytest.raises(
        ValueError, match="has no response_template, and its chat template writes them otherwise than as JSON"
    ):
        CallFormat(tokenizer, SCHEMAS)
    call = {"open": "<tool_call>", "close": "</tool_call>", "content": "json", "repeats": True,
            "transform": {"type": "function", "function": "{content}"}}  # fmt: skip
    fields = {"tool_calls": call, "content": {"close": "<|im_end|>", "content": "text"}}
    start = "<|im_start|>assistant\n"
    tokenizer.response_template = {"defaults": {"role": "assistant"}, "start_anchor": start, "fields": fields}
    text = '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert CallFormat(tokenizer, SCHEMAS).read(ids, text, start)[1] == [{"name": "add", "arguments": {"a": 1}}]
    assert CallFormat(tokenizer, SCHEMAS).read(ids[:-8], text, start)[1] == []


def test_templates_that_do_not_write_what_is_said_are_refused():
    with pytest.raises(ValueError, match="shows the policy no tools"):
        CallFormat(build("qwen-base"), SCHEMAS)
    form = TextFormat(build("llama2"), True)
    with pytest.raises(ValueError, match="no system"):
        Dialogue(form).check(ASKED, {}, ["critic"])
    silent = tool_tokenizer(TOOLS["hermes"].replace("{{ m.content }}\n</tool", "</tool"))
    with pytest.raises(ValueError, match="leaves out a message of the role 'tool'"):
        Dialogue(TextFormat(silent, True)).check(ASKED, {"tools": SCHEMAS}, ["tool"])


def test_a_template_that_removes_thoughts_is_told_of_once(caplog):
    form = TextFormat(build("qwen-thought"), True)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            Dialogue(form).check(ASKED, {}, ["user"])
    assert sum("removes thoughts" in record.message for record in caplog.records) == 1


def test_without_a_template_a_text_follows_as_it_stands():
    tokenizer = build("gpt2")
    form = TextFormat(tokenizer, False)
    dialogue = Dialogue(form)
    words = dialogue.messages(" a\ud800b")
    assert tokenizer.decode(dialogue.follows([5], [], {"role": "assistant", "content": "x"}, words, {})) == " a\ufffdb"


#: Tokens of the families whose templates TRL ships, first those that end a message.
MARKS = (
    "<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<turn|>", "<|end|>", "</s>", "<|endoftext|>", "<|return|>", "<|user|>", "<|observation|>",
    "<｜end▁of▁sentence｜>", "<|END_OF_TURN_TOKEN|>", "<end_of_utterance>", "<|eom_id|>", "<|call|>", "<|tool_response>", "<|start_header_id|>",
    "<|end_header_id|>", "<start_of_turn>", "<|turn>", "<bos>", "<s>", "[INST]", "[/INST]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "<|start|>",
    "<|message|>", "<|channel|>",
)  # fmt: skip


def of_a_family(template):
    tokenizer = build("qwen-base")
    tokenizer.add_special_tokens({"additional_special_tokens": list(MARKS)})
    tokenizer.bos_token, tokenizer.chat_template = "<s>", template
    tokenizer.eos_token = next((mark for mark in MARKS[:14] if mark in template), "<|im_end|>")
    return TextFormat(tokenizer, True)


def same_rows(form, role):
    """Tell whether what follows a turn is what training on the written conversation has there; None if the template has no such turn."""
    extra = {"tools": SCHEMAS} if role == "tool" else {}
    turns = [
        {"role": "assistant", "content": "", "tool_calls": CALLS} if role == "tool" else {"role": "assistant", "content": "7"},
        {"role": "tool", "name": "add", "content": "seven"} if role == "tool" else {"role": "user", "content": "+4 ="},
        {"role": "assistant", "content": "11"},
    ]  # fmt: skip
    dialogue = Dialogue(form)
    try:
        dialogue.check(ASKED, extra, [role])
        (_, said), (_, heard), *_ = stretches(form, read(form, extra), turns)
    except ValueError:
        return None
    return dialogue.follows(said, ASKED, turns[0], turns[1:2], extra) == heard


@pytest.mark.slow
def test_on_every_template_that_trl_ships_an_environment_makes_the_rows_of_training():
    trl = pytest.importorskip("trl", exc_type=ImportError)
    files = sorted(Path(trl.__file__).parent.glob("chat_templates/*.jinja"))
    templates = {file.stem: file.read_text() for file in files if "_training" not in file.stem}
    found = {
        role: {name: same_rows(of_a_family(text), role) for name, text in templates.items()}
        for role in ("user", "tool")
    }
    different = {(role, name) for role, names in found.items() for name, same in names.items() if same is False}
    assert not different
    counts = {role: sum(same is True for same in names.values()) for role, names in found.items()}
    assert counts["user"] >= 38 and counts["tool"] >= 26, counts

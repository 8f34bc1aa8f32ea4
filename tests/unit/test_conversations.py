"""Conversations to learn from: the tokens of all turns, of which the assistant's are learnt."""

import logging

import pytest

from rl_lightning.data.encoded import EncodedPrompts
from rl_lightning.data.offline.written import WrittenReader, stack
from rl_lightning.data.prompts import encode_prompts, text_format
from rl_lightning.data.sources.base import Example
from rl_lightning.errors import UserError
from rl_lightning.text import completed
from tests.tokenizers import CHATML, KINDS, build

LIMITS = {"max_prompt_length": None, "context_length": None, "max_new_tokens": 8}
ASKED = [{"role": "user", "content": "1+2="}]
TURNS = [
    {"role": "assistant", "content": "3"},
    {"role": "user", "content": "+4="},
    {"role": "assistant", "content": "7"},
]
CHATS = [name for name, kind in KINDS.items() if kind.template is not None and name != "needs-system"]


def said(content, **more):
    return {"role": "assistant", "content": content, **more}


def encoded(tokenizer, *examples, **options):
    reader = WrittenReader(text_format(tokenizer, None), **options)
    return encode_prompts(examples, tokenizer, **LIMITS, add_written=reader)


def one(tokenizer, response, prompt=ASKED, **options):
    template = options.pop("template", {})
    (made,) = encoded(tokenizer, Example(prompt, response=response, location="f:1", template=template), **options)
    return made


def learnt(tokenizer, made):
    """Return the stretches of learnt tokens, as text."""
    mask, ids = made.learnt[0] or [True] * len(made.written[0]), made.written[0]
    stretches = "".join("x" if on else " " for on in mask).split()
    places = iter(ids[place] for place, on in enumerate(mask) if on)
    return [tokenizer.decode([next(places) for _ in stretch]) for stretch in stretches]


# ------------------------------------------------------------------------------------------------- what is learnt


@pytest.mark.parametrize("name", CHATS)
def test_a_message_has_the_tokens_of_its_text(name):
    tokenizer = build(name)
    for text in ("3", " 3\n", "<think>\nadd\n</think>\n\n3"):
        made, message = one(tokenizer, text), one(tokenizer, [said(text)])
        assert message.written == made.written and message.learnt == made.learnt == (None,)


@pytest.mark.parametrize("name", CHATS)
def test_every_turn_of_the_assistant_is_learnt_up_to_its_end_and_nothing_else(name):
    tokenizer = build(name)
    made = one(tokenizer, TURNS)
    end = "".join(KINDS[name].end)
    turns = [
        text.removeprefix("<think>\n\n</think>\n\n").removeprefix("\n</think>\n\n") for text in learnt(tokenizer, made)
    ]
    if end == "<|endoftext|>":  # this template marks no end, and EOS ends the last turn
        assert [text.strip() for text in turns] == ["3", f"7{end}"]
    else:
        assert ["".join(text.split()) for text in turns] == [f"3{end}", f"7{end}"]
    # What is between and before is what the template writes there when it asks for the last turn.
    if name not in ("qwen-thought", "r1"):
        asked = tokenizer.apply_chat_template([*ASKED, *TURNS[:2]], tokenize=False, add_generation_prompt=True)
        row = tokenizer.decode([*made.input_ids, *made.written[0]])
        assert row.startswith(asked) and "7" not in row[: len(asked)]


def test_a_template_that_rewrites_earlier_turns_is_told_of_once(caplog):
    tokenizer = build("qwen-thought")
    turns = [said("<think>\nadd\n</think>\n\n3"), TURNS[1], said("<think>\nmore\n</think>\n\n7")]
    with caplog.at_level(logging.WARNING):
        rows = encoded(tokenizer, *(Example(ASKED, response=turns, location=f"f:{n}") for n in range(3)))
    assert caplog.text.count("otherwise once others follow it") == 1
    row = tokenizer.decode([*rows[2].input_ids, *rows[2].written[0]])
    assert row == (
        "<|im_start|>user\n1+2=<|im_end|>\n<|im_start|>assistant\n<think>\nadd\n</think>\n\n3<|im_end|>\n"
        "<|im_start|>user\n+4=<|im_end|>\n<|im_start|>assistant\n<think>\nmore\n</think>\n\n7<|im_end|>"
    )
    assert learnt(tokenizer, rows[0]) == [
        "<think>\nadd\n</think>\n\n3<|im_end|>",
        "<think>\nmore\n</think>\n\n7<|im_end|>",
    ]


def marked(inside, outside=""):
    return (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}" + inside
        + "{% endgeneration %}" + outside + "{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )  # fmt: skip


@pytest.mark.parametrize(
    "template",
    [
        marked("{{ m.content }}<|im_end|>", "{{ '\n' }}"),
        marked("{{ m.content }}", "<|im_end|>\n"),
        marked("{{ m.content }}<|im_end|>\n"),
    ],
)
def test_the_marks_of_a_template_say_what_is_learnt_and_a_turn_has_its_end(template):
    tokenizer = build("qwen-base")
    plain = one(tokenizer, TURNS)
    tokenizer.chat_template = template
    made = one(tokenizer, TURNS)
    assert learnt(tokenizer, made) == ["3<|im_end|>", "7<|im_end|>"]
    assert (made.written, made.learnt) == (plain.written, plain.learnt)


def test_what_a_template_does_not_mark_is_not_learnt():
    tokenizer = build("qwen-base")
    tokenizer.chat_template = marked("{{ m.content }}", "<|im_end|>\n").replace(
        "{% generation %}{{ m.content }}{% endgeneration %}",
        "{% if m.content == '3' %}3{% else %}{% generation %}{{ m.content }}{% endgeneration %}{% endif %}",
    )
    assert learnt(tokenizer, one(tokenizer, TURNS)) == ["7<|im_end|>"]


TOOLS = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content }}{% for call in m.tool_calls or [] %}<call>{{ call.function.name }}({{ call.function.arguments | tojson }})</call>{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize("arguments", [{"a": 1}, '{"a": 1}'])
def test_calls_of_tools_are_learnt_and_their_results_are_not(arguments):
    tokenizer = build("qwen-base")
    tokenizer.chat_template = TOOLS
    call = {"type": "function", "function": {"name": "add", "arguments": arguments}}
    turns = [said("", tool_calls=[call]), {"role": "tool", "content": "3"}, said("It is 3.")]
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    made = one(tokenizer, turns, template={"tools": tools})
    assert learnt(tokenizer, made) == ['<call>add({"a": 1})</call><|im_end|>', "It is 3.<|im_end|>"]
    assert made.text.startswith('<|im_start|>system\n[{"type": "function"')
    assert tokenizer.decode(made.written[0]).count("<|im_start|>tool\n3<|im_end|>") == 1


@pytest.mark.parametrize("marks", [False, True])
@pytest.mark.parametrize(
    ("lost", "what"),
    [
        ("{% for call in m.tool_calls or [] %}", "the call of the tool 'add'"),
        ("{{ m.content }}", "a message of the role 'tool'"),
    ],
)
def test_a_template_that_loses_calls_or_their_results_is_refused(lost, what, marks):
    tokenizer = build("qwen-base")
    kept = "{% if m.role != 'tool' %}{{ m.content }}{% endif %}" if "content" in lost else "{% for call in [] %}"
    template = TOOLS.replace(lost, kept)
    if marks:
        body = template.partition("<|im_start|>{{ m.role }}\n")[2].partition("<|im_end|>\n{% endfor %}{% if add")[0]
        template = template.replace(body, "{% generation %}" + body + "{% endgeneration %}")
    tokenizer.chat_template = template
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    turns = [said("", tool_calls=[call]), {"role": "tool", "content": "31"}, said("It is 3.")]
    with pytest.raises(UserError, match=f"leaves out {what}"):
        one(tokenizer, turns, template={"tools": [{"type": "function", "function": {"name": "add"}}]})


def test_a_template_that_reads_arguments_as_text():
    tokenizer = build("qwen-base")
    tokenizer.chat_template = TOOLS.replace("call.function.arguments | tojson", "'' + call.function.arguments")
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    turns = [said("", tool_calls=[call]), {"role": "tool", "content": "3"}, said("It is 3.")]
    assert learnt(tokenizer, one(tokenizer, turns))[0] == '<call>add({"a": 1})</call><|im_end|>'


#: As gpt-oss's: the last turn of a conversation ends otherwise than those before it.
OTHER_END = (
    "{% for m in messages %}<|start|>{{ m.role }}{{ m.content }}{% if m.role == 'assistant' and loop.last %}<|return|>"
    "{% else %}<|end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)


def test_a_last_turn_that_ends_otherwise_than_earlier_ones():
    tokenizer = build("qwen-base")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|start|>", "<|return|>", "<|end|>"]})
    tokenizer.chat_template = OTHER_END
    made = one(tokenizer, TURNS)
    assert learnt(tokenizer, made) == ["3<|return|>", "7<|return|>"]
    assert tokenizer.decode(made.written[0]) == "3<|return|><|start|>user+4=<|end|><|start|>assistant7<|return|>"


def test_a_template_that_reads_contents_in_parts():
    tokenizer = build("qwen-base")
    tokenizer.chat_template = CHATML.replace(
        "{{ m.content }}", "{% for part in m.content %}{{ part.text }}{% endfor %}"
    )
    parts, plain = one(tokenizer, TURNS), one(build("qwen-base"), TURNS)
    assert (parts.input_ids, parts.written, parts.learnt) == (plain.input_ids, plain.written, plain.learnt)


def test_turns_after_the_last_of_the_assistant_are_left_out():
    tokenizer = build("qwen-base")
    thanks = {"role": "user", "content": "Thanks!"}
    assert one(tokenizer, [*TURNS, thanks]).written == one(tokenizer, TURNS).written


@pytest.mark.parametrize(
    ("turns", "what"),
    [(TURNS[1:2], "without a turn of the assistant"), (TURNS[1:], "do not begin with a turn of the assistant")],
)
def test_turns_that_cannot_be_learnt_are_named(turns, what):
    with pytest.raises(UserError, match=what):
        one(build("qwen-base"), turns)


def test_a_conversation_without_a_template_asks_for_one():
    tokenizer = build("gpt2")
    assert one(tokenizer, [said("3")]).written == one(tokenizer, "3").written
    with pytest.raises(
        UserError, match=r"f:1: messages \(user, assistant, user, assistant\) need a chat template.*template file"
    ):
        one(tokenizer, TURNS)


# ------------------------------------------------------------------------------------------- texts without a prompt


@pytest.mark.parametrize("name", ["gpt2", "llama2-plain", "t5", "bert", "llama2", "qwen-base"])
def test_a_text_is_learnt_whole(name):
    tokenizer = build(name)
    made = one(tokenizer, "1+2=3", prompt=None)
    row = tokenizer.convert_ids_to_tokens([*made.input_ids, *made.written[0]])
    first = tokenizer.bos_token or tokenizer.cls_token
    begins = first is not None and tokenizer("1").input_ids[0] == tokenizer.convert_tokens_to_ids(first)
    last = tokenizer.eos_token or tokenizer.sep_token
    assert row == [*([first] if begins else []), *"1+2=3", last]
    assert len(made.input_ids) == 1 and made.learnt == (None,)


# ---------------------------------------------------------------------------------------------------------- cutting


def test_a_long_text_is_dropped_or_cut_as_asked_and_counted(caplog):
    tokenizer = build("qwen-base")
    whole = one(tokenizer, TURNS)
    size = len(whole.input_ids) + len(whole.written[0])
    examples = [Example(ASKED, response=TURNS, location="f:1"), Example("1", response="1", location="f:2")]
    with caplog.at_level(logging.INFO):
        (kept,) = encoded(tokenizer, *examples, max_length=size - 3, asked_for=True)
        assert kept.example is examples[1] and "dropped 1 of 2 prompts: 1 longer than max_length" in caplog.text
        cut = encoded(tokenizer, *examples, max_length=size - 3, asked_for=True, truncation="right")[0]
        assert "1 of 2 prompts lost tokens to max_length" in caplog.text
    assert cut.input_ids == whole.input_ids and cut.written[0] == whole.written[0][:-3]
    assert cut.learnt[0] == whole.learnt[0][:-3]
    left = encoded(tokenizer, *examples, max_length=size - 3, asked_for=True, truncation="left")[0]
    assert left.input_ids == whole.input_ids[3:] and left.written == whole.written
    text = one(tokenizer, "12345", prompt=None, max_length=4, truncation="left")
    assert tokenizer.decode([*text.input_ids, *text.written[0]]) == "345<|endoftext|>"
    text = one(tokenizer, "12345", prompt=None, max_length=4, truncation="right")
    assert tokenizer.decode([*text.input_ids, *text.written[0]]) == "1234"


def test_a_cut_that_leaves_nothing_to_learn_drops_the_row():
    tokenizer = build("qwen-base")
    with pytest.raises(UserError, match="1 prompt without room for a response in max_length: 5"):
        one(tokenizer, TURNS, max_length=5, asked_for=True, truncation="right")


# ----------------------------------------------------------------------------------------------------------- tables


def test_what_others_say_is_read_and_not_learnt():
    tokenizer = build("qwen-base")
    made, short = one(tokenizer, TURNS), one(tokenizer, "3")
    rows = stack(
        [made.input_ids, short.input_ids], [made.written[0], short.written[0]], 0, [made.learnt[0], short.learnt[0]]
    )
    assert rows.lengths.tolist() == [len(made.written[0]), len(short.written[0])]
    assert rows.response_attention[0].all() and not rows.response_mask[0].all()
    kept = [tokenizer.decode(ids[mask]) for ids, mask in zip(rows.response_ids, rows.response_mask, strict=True)]
    assert kept == ["3<|im_end|>7<|im_end|>", "3<|im_end|>"]


def test_encoded_prompts_are_what_was_encoded():
    tokenizer = build("qwen-base")
    examples = [Example(f"{n}é=", response=TURNS if n % 2 else str(n), location=f"f:{n}") for n in range(1500)]
    made = encoded(tokenizer, *examples)
    assert isinstance(made, EncodedPrompts) and made.ids.flat.itemsize == 4 and len(made) == 1500
    for place in (0, 1, 1023, 1024, 1499, -1):
        alone = one(tokenizer, examples[place].response, examples[place].prompt)
        found = made[place]
        assert (found.input_ids, found.text, found.messages) == (alone.input_ids, alone.text, alone.messages)
        assert (found.written, found.learnt) == (alone.written, alone.learnt) and found.example is examples[place]
    assert [prompt.index for prompt in made[1490:]] == list(range(1490, 1500))
    with pytest.raises(IndexError):
        made[1500]


# -------------------------------------------------------------------------------------------------- the template


def test_values_and_a_prefix_become_a_part_of_the_template():
    tokenizer = build("qwen-base")
    plain = "\n{{ 'a' if thinking is defined and not thinking else 'b' }}{{ messages[0].content }}:\n"
    messages = [{"role": "user", "content": "1"}]

    def rendered(**values):
        return tokenizer.apply_chat_template(messages, tokenize=False, **values)

    tokenizer.chat_template = plain
    assert rendered(add_generation_prompt=True) == "\nb1:"
    tokenizer.chat_template = completed(plain, {"thinking": False}, "<think>\n")
    assert rendered(add_generation_prompt=True) == "\na1:<think>\n"
    assert rendered(add_generation_prompt=True, thinking=True) == "\nb1:<think>\n"
    assert rendered() == "\na1:"
    assert completed(tokenizer.chat_template, {"thinking": False}, "<think>\n") == tokenizer.chat_template

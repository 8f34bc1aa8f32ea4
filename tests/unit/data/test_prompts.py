"""Prompts and demonstrations as token ids."""

import logging
import time

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from rl_lightning.data.offline.written import WrittenReader
from rl_lightning.data.prompts import encode_prompts, text_format
from rl_lightning.data.sources.base import Example
from rl_lightning.errors import UserError

TEMPLATE = (
    "{% for m in messages %}"
    "{% if m['role'] == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "<{{ m['role'] }}>{{ m['content'] }}\n"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>"]
LIMITS = {"max_prompt_length": None, "context_length": None, "max_new_tokens": 8}


def character_tokenizer(characters=None, template=None, around=None, unknown=True):
    """Make a tokenizer of single characters.

    Args:
        characters: that it knows; all of ASCII if None.
        template: its chat template.
        around: what it puts around a text, such as `<bos> $A`.
        unknown: whether it has a token for characters that it does not know.
    """
    vocabulary = [*(SPECIAL if unknown else SPECIAL[:3]), *(characters or map(chr, range(128)))]
    index = {token: number for number, token in enumerate(vocabulary)}
    core = Tokenizer(models.WordLevel(index, unk_token="<unk>" if unknown else None))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    if around:
        core.post_processor = processors.TemplateProcessing(
            single=around, special_tokens=[(token, index[token]) for token in SPECIAL]
        )
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>"}
    if unknown:
        names["unk_token"] = "<unk>"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **names)
    tokenizer.chat_template = template
    return tokenizer


def characters(text):
    return [len(SPECIAL) + ord(c) for c in text]


def one(prompt, tokenizer, **arguments):
    example = Example(prompt, location="here:1", plain=arguments.pop("plain", None))
    (encoded,) = encode_prompts([example], tokenizer, **{**LIMITS, **arguments})
    return encoded


def complaint(examples, tokenizer, **arguments):
    with pytest.raises(UserError) as caught:
        encode_prompts(examples, tokenizer, **{**LIMITS, **arguments})
    return str(caught.value)


def test_plain_prompt():
    encoded = one("3+4=", character_tokenizer())
    assert encoded.input_ids == characters("3+4=")
    assert encoded.text == encoded.example.prompt == "3+4="


@pytest.mark.parametrize(
    ("around", "ids"),
    [
        ("<bos> $A", [2, *characters("3=")]),
        ("$A <eos>", characters("3=")),
        ("<bos> $A <eos>", [2, *characters("3=")]),
    ],
)
def test_special_tokens_before_a_plain_prompt_are_kept_and_an_end_of_sequence_is_not(around, ids):
    assert one("3=", character_tokenizer(around=around)).input_ids == ids


def test_an_end_of_sequence_that_the_prompt_itself_has_is_kept():
    assert one("3=<eos>", character_tokenizer()).input_ids == [*characters("3="), 1]


def test_a_text_becomes_a_users_message():
    tokenizer = character_tokenizer(template=TEMPLATE, around="<bos> $A <eos>")
    encoded = one("3+4=", tokenizer)
    assert encoded.text == "<user>3+4=\n<assistant>"
    # The template says all there is to say: the tokenizer adds nothing of its own.
    assert encoded.input_ids == characters("<user>3+4=\n<assistant>")
    messages = [{"role": "user", "content": "3+4="}]
    assert encoded.input_ids == tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=False
    )


def test_a_template_may_end_turns_with_the_end_of_sequence_token():
    template = "{{ messages[0]['content'] }}{{ eos_token }}"
    assert one("3", character_tokenizer(template=template)).input_ids == [*characters("3"), 1]


def test_system_prompt_goes_where_there_is_no_system_message():
    tokenizer = character_tokenizer(template=TEMPLATE)
    own = [{"role": "system", "content": "own"}, {"role": "user", "content": "a"}]
    assert one("a", tokenizer, system_prompt="Hi").text == "<system>Hi\n<user>a\n<assistant>"
    assert one(own, tokenizer, system_prompt="Hi").text == "<system>own\n<user>a\n<assistant>"
    assert one(own[1:], tokenizer, system_prompt="Hi").text == "<system>Hi\n<user>a\n<assistant>"


def test_chat_template_can_be_turned_off():
    tokenizer = character_tokenizer(template=TEMPLATE)
    assert one("a", tokenizer, chat_template=False).text == "a"
    assert one("a", tokenizer, chat_template=True).text == "<user>a\n<assistant>"


def test_a_chat_template_that_is_wanted_must_be_there():
    with pytest.raises(UserError, match="chat_template: true, but the tokenizer has none"):
        one("a", character_tokenizer(), chat_template=True)
    with pytest.raises(UserError, match="system_prompt is set, but without a chat template"):
        one("a", character_tokenizer(), system_prompt="Hi")
    with pytest.raises(UserError, match="system_prompt is set"):
        one("a", character_tokenizer(template=TEMPLATE), chat_template=False, system_prompt="Hi")


def test_messages_without_a_template():
    user = {"role": "user", "content": "a"}
    assert one([user], character_tokenizer()).input_ids == characters("a")
    turns = [user, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    examples = [Example("a", location="f:1"), Example(turns, location="f:2"), Example(turns, location="f:3")]
    message = complaint(examples, character_tokenizer())
    assert message == (
        "f:2: messages (user, assistant, user) need a chat template, and the policy has none: give the path of a template file as "
        "prompt_options.chat_template, or use an instruction-tuned policy"
    )
    assert len(encode_prompts(examples, character_tokenizer(), **LIMITS, on_bad="drop")) == 1
    assert one(turns, character_tokenizer(), plain="Q: a").input_ids == characters("Q: a")


def test_everything_wrong_with_all_examples_is_reported_at_once():
    examples = [
        Example("12345", answer="1", location="f:1"),
        Example("1", answer="x", location="f:2"),
        Example("1", answer="2", location="f:3"),
        Example(" ", answer="3", location="f:4"),
        Example("1234567", answer="y", location="f:5"),
    ]
    asked = []

    def check(answers):
        asked.append(answers)
        return [None if answer.isdigit() else f"{answer!r} is no number" for answer in answers]

    message = complaint(
        examples, character_tokenizer(), max_prompt_length=4, context_length=14, max_new_tokens=8, check_answers=check
    )
    assert message.split("\n") == [
        "4 of 5 prompts cannot be used (on_bad: drop leaves them out):",
        "  f:1: the prompt has 5 tokens, more than max_prompt_length: 4",
        "  f:2: the gold answer: 'x' is no number",
        "  f:4: the prompt is empty",
        "  f:5: the prompt has 7 tokens, more than max_prompt_length: 4",
        "  f:5: the prompt's 7 tokens and max_new_tokens: 8 are together more than the 14 tokens of the policy's "
        "context",
        "  f:5: the gold answer: 'y' is no number",
    ]
    assert asked == [["1", "x", "2", "3", "y"]]


def test_limits_are_inclusive():
    tokenizer = character_tokenizer()
    assert one("1234", tokenizer, max_prompt_length=4, context_length=12)
    with pytest.raises(UserError, match="max_prompt_length: 3"):
        one("1234", tokenizer, max_prompt_length=3)
    with pytest.raises(UserError, match="the 11 tokens of the policy's context"):
        one("1234", tokenizer, context_length=11)


def test_lengths_count_what_the_template_adds():
    with pytest.raises(UserError, match=f"has {len('<user>1<assistant>') + 1} tokens"):
        one("1", character_tokenizer(template=TEMPLATE), max_prompt_length=5)


def test_only_twenty_are_shown():
    message = complaint([Example("", location=f"f:{n}") for n in range(25)], character_tokenizer())
    assert "f:19:" in message
    assert "f:20:" not in message
    assert message.endswith("... and 5 more")


def test_bad_examples_can_be_dropped_and_are_counted_by_kind(caplog):
    examples = [Example(text, answer=text) for text in ("1", "12345", "23456", "", "2", "x")]
    with caplog.at_level(logging.WARNING):
        encoded = encode_prompts(
            examples,
            character_tokenizer(),
            **{**LIMITS, "max_prompt_length": 4},
            on_bad="drop",
            check_answers=lambda answers: ["no number" if answer in ("x", "") else None for answer in answers],
        )
    assert [prompt.example for prompt in encoded] == [examples[0], examples[4]]
    assert [prompt.input_ids for prompt in encoded] == [characters("1"), characters("2")]
    assert "dropped 4 of 6 prompts: 2 longer than max_prompt_length, 1 empty prompt, 1 bad gold answer" in caplog.text


def test_it_is_an_error_if_nothing_is_left():
    tokenizer = character_tokenizer()
    message = complaint([Example("12"), Example("")], tokenizer, on_bad="drop", max_prompt_length=1)
    assert message == "no prompts are left of 2: 1 longer than max_prompt_length, 1 empty prompt"
    assert complaint([], tokenizer) == "no prompts are left of 0"
    assert complaint([], character_tokenizer(template=TEMPLATE)) == "no prompts are left of 0"


def test_good_examples_are_not_spoilt_by_one_that_the_template_refuses():
    tool = [{"role": "tool", "content": "a"}]
    examples = [Example("1", location="f:1"), Example(tool, location="f:2"), Example("2", location="f:3")]
    tokenizer = character_tokenizer(template=TEMPLATE)
    message = complaint(examples, tokenizer)
    assert message.split("\n")[1:] == ["  f:2: the chat template refuses it: no tools here"]
    encoded = encode_prompts(examples, tokenizer, **LIMITS, on_bad="drop")
    assert [prompt.text for prompt in encoded] == ["<user>1\n<assistant>", "<user>2\n<assistant>"]


def test_an_empty_prompt_is_found_inside_a_template():
    assert "f:1: the prompt is empty" in complaint(
        [Example("\n", location="f:1")], character_tokenizer(template=TEMPLATE), system_prompt="Hi"
    )


def test_characters_that_the_tokenizer_does_not_know(caplog):
    examples = [Example("1+1", location="f:1"), Example("1*1", location="f:2"), Example("*", location="f:3")]
    with caplog.at_level(logging.WARNING):
        encode_prompts(examples[:1], character_tokenizer("01+"), **LIMITS)
        assert caplog.text == ""
        encode_prompts(examples, character_tokenizer("01+"), **LIMITS)
    assert "2 of 3 prompts hold characters that the tokenizer does not know" in caplog.text
    assert "the first is f:2" in caplog.text
    unread = complaint([Example("abc+1", location="f:7")] * 2, character_tokenizer("01+"))
    assert (
        "the policy cannot read the prompts: its tokenizer does not know 60% of their tokens" in unread
        and "f:7" in unread
    )
    message = complaint(examples, character_tokenizer("01+", unknown=False))
    assert "f:1" not in message
    assert "f:2: the tokenizer cannot read it" in message
    assert "f:3: the tokenizer cannot read it" in message


def reader(tokenizer, **options):
    return WrittenReader(text_format(tokenizer, None), **options)


def demonstrated(response, tokenizer, prompt="3+4="):
    """Return the tokens of a prompt and of the response to it."""
    example = Example(prompt, response=response, location="f:1")
    (encoded,) = encode_prompts([example], tokenizer, **LIMITS, add_written=reader(tokenizer))
    return encoded.input_ids, *encoded.written


def test_a_demonstration_is_its_own_tokens_and_one_end():
    for tokenizer in (character_tokenizer(around="<bos> $A <eos>"), character_tokenizer(template=TEMPLATE)):
        assert demonstrated("7#7", tokenizer)[1] == [*characters("7#7"), 1]
        assert demonstrated("7#7<eos>", tokenizer)[1] == [*characters("7#7"), 1]


def test_a_demonstration_does_not_merge_with_its_prompt():
    index = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "a": 4, "b": 5, "ab": 6}
    core = Tokenizer(models.BPE(vocab=index, merges=[("a", "b")], unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>")
    assert tokenizer("ab")["input_ids"] == [6]
    assert demonstrated("b", tokenizer, prompt="a") == ([4], [5, 1])


def test_missing_responses_are_named_together():
    examples = [Example("1", response="2", location="f:1"), Example("2", location="f:2"), Example("3", location="f:3")]
    tokenizer = character_tokenizer()
    message = complaint(examples, tokenizer, add_written=reader(tokenizer))
    assert message.split("\n")[1:] == ["  f:2: no response", "  f:3: no response"]
    message = complaint(examples[1:], tokenizer, add_written=reader(tokenizer))
    assert message == "none of the examples has a response: give them one"


@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_many_prompts_are_encoded_in_batches(template):
    tokenizer = character_tokenizer(template=template)
    examples = [Example(f"{n}+{n}=", location=f"f:{n}") for n in range(2000)]
    start = time.process_time()
    assert len(encode_prompts(examples, tokenizer, **LIMITS)) == 2000
    # Well below a second on an idle machine; the rest is room for a busy one.
    assert time.process_time() - start < 4

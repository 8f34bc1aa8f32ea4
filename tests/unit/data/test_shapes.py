"""What rows hold, as their columns say: every shape makes the right example, and nothing is taken for what it is not."""

import json

import pytest

from rl_lightning.data.sources import Example, as_source
from rl_lightning.data.sources.splitting import at_last_turn
from rl_lightning.errors import UserError
from tests.shapes import CALL, REFUSED, SHAPES, TOOL, asked, said, told

ALPACA = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a response that "
    "appropriately completes the request.\n\n### Instruction:\n1+2=\n\n### Input:\n5\n\n### Response:\n"
)
SYSTEM = {"role": "system", "content": "#"}
PLAIN = "\n\nHuman: 1+1=\n\nAssistant: 2\n\nHuman: 2+1=\n\nAssistant:"

#: Shape → what is said of it, and the example that its row makes.
EXPECTED = {
    "language modelling": ("texts to learn whole", Example(None, response="1+2=3")),
    "messages": ("demonstrations, conversational", Example([asked("1+2=")], response="3")),
    "messages, several turns": (
        "demonstrations, conversational",
        Example([SYSTEM, asked("1+2=")], response=[said("3"), asked("4+2="), said("6")]),
    ),
    "messages that end with the user": (
        "prompts, conversational",
        Example([asked("1+2="), said("3"), asked("4+2=")]),
    ),
    "messages in text parts": ("demonstrations, conversational", Example([asked("1+2=")], response="3")),
    "messages with tools": (
        "demonstrations, conversational, tools",
        Example(
            [asked("1+2=")],
            response=[CALL, {"role": "tool", "name": "add", "content": "3"}, said("3")],
            template={"tools": [TOOL]},
        ),
    ),
    "prompt": ("prompts", Example("1+2=")),
    "prompt, messages": ("prompts, conversational", Example([asked("1+2=")])),
    "prompt, answer": ("prompts, gold answers", Example("1+2=", "3")),
    "prompt, completion": ("demonstrations", Example("1+2=", response="3")),
    "prompt, completion, messages": ("demonstrations, conversational", Example([asked("1+2=")], response="3")),
    "preference": ("preference pairs", Example("1+2=", response="3", rejected="4")),
    "preference, messages": (
        "preference pairs, conversational",
        Example([asked("1+2=")], response="3", rejected="4"),
    ),
    "preference, implicit prompt": (
        "preference pairs, implicit prompt",
        Example("1+2=", response=" 3", rejected=" 4"),
    ),
    "preference, implicit prompt, messages": (
        "preference pairs, conversational, implicit prompt",
        Example([asked("1+2=")], response="3", rejected="4"),
    ),
    "UltraFeedback": (
        "preference pairs, conversational, prompt repeated in both",
        Example(
            [asked("1+2=")],
            response="3",
            rejected="4",
            metadata={"prompt_id": "9", "score_chosen": 8.0, "score_rejected": 6.5},
        ),
    ),
    "hh-rlhf": (
        "preference pairs, transcripts, implicit prompt",
        Example([asked("1+1="), said("2"), asked("2+1=")], response="3", rejected="4", plain=PLAIN),
    ),
    "Intel's orca pairs": (
        "preference pairs, system messages",
        Example([SYSTEM, asked("1+2=")], response="3", rejected="4"),
    ),
    "unpaired preference (KTO)": ("labelled responses", Example("1+2=", response="3", label=1.0)),
    "unpaired preference, messages": (
        "labelled responses, conversational",
        Example([asked("1+2=")], response="4", label=0.0),
    ),
    "ShareGPT": (
        "demonstrations, conversational, system messages",
        Example([SYSTEM, asked("1+2=")], response="3"),
    ),
    "Alpaca": ("demonstrations, prompts with an input", Example("1+2=\n\n5", response="3", plain=ALPACA)),
    "GSM8K": (
        "demonstrations, gold answers",
        Example("1+2=", "3", response="1+2=<<1+2=3>>3\n#### 3"),
    ),
    "MATH": (
        "demonstrations, gold answers",
        Example(
            "1+2=",
            "3",
            response="It is $\\boxed{3}$.",
            metadata={"solution": "It is $\\boxed{3}$.", "level": "1"},
        ),
    ),
    "MATH-500": (
        "demonstrations, gold answers",
        Example("1+2=", "3", response="1+2=3", metadata={"solution": "1+2=3"}),
    ),
    "verl": (
        "prompts, conversational, gold answers",
        Example(
            [asked("1+2=")],
            "3",
            metadata={
                "data_source": "sums",
                "ability": "math",
                "reward_model": {"style": "rule", "ground_truth": "3"},
                "extra_info": {"index": 0},
            },
        ),
    ),
    "prompt, chat_template_kwargs": (
        "prompts, conversational, gold answers",
        Example([asked("1+2=")], "3", template={"enable_thinking": False}),
    ),
}


def read(rows, **options):
    source = as_source(rows, **options)
    return source, source.load("train")


def complaint(rows, **options):
    with pytest.raises(UserError) as caught:
        read(rows, **options)
    return str(caught.value)


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_makes_its_example(name):
    line, wanted = EXPECTED[name]
    source, (example,) = read([SHAPES[name]])
    assert str(source.shape("train")) == line
    assert {**vars(example), "location": ""} == vars(wanted)


def test_every_shape_has_its_example():
    assert EXPECTED.keys() == SHAPES.keys()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("stepwise supervision", r"steps with labels \(completions, labels\)"),
        ("images in messages", r"column 'messages' has a message 1 with image: policies here read text alone"),
        (
            "a column of images",
            r"column 'images' holds what is no text.*prompt_column: prompt, response_column: completion",
        ),
        (
            "two that contradict",
            r"prompt and completion, or messages, which says something else.*messages_column: messages",
        ),
        ("none", r"its columns are left, right; expected .*chosen and rejected.*write rows such as \{\"prompt\""),
    ],
)
def test_what_is_no_shape_is_refused_by_name(name, message):
    with pytest.raises(UserError, match=message):
        read([REFUSED[name]])


# ------------------------------------------------------------------------------------------------------- named columns


def test_named_columns_win_over_recognition():
    row = {"prompt": "1+2=", "completion": "3", "question": "4+4=", "work": "8", "messages": [asked("5="), said("5")]}
    (example,) = read([row], prompt_column="question", response_column="work")[1]
    assert (example.prompt, example.response) == ("4+4=", "8")
    (example,) = read([row], messages_column="messages")[1]
    assert (example.prompt, example.response) == ([asked("5=")], "5")
    (example,) = read([SHAPES["preference"]], prompt_column="prompt", response_column="chosen")[1]
    assert (example.prompt, example.response, example.rejected) == ("1+2=", "3", None)


def test_an_answer_column_that_is_named_stands_beside_what_is_recognised():
    (example,) = read([{"problem": "1+2=", "solution": "9", "gold_one": 3}], answer_column="gold_one")[1]
    assert (example.prompt, example.answer, example.response) == ("1+2=", "3", "9")


def test_columns_for_labels_and_caps():
    row = {"prompt": "1+2=", "completion": "3", "score": 0.25, "cap": 7}
    source, (example,) = read([row, {**row, "cap": None}][:1], label_column="score", max_new_tokens_column="cap")
    assert (example.label, example.max_new_tokens) == (0.25, 7)
    assert "own caps on new tokens" in str(source.shape("train"))
    assert read([row, {**row, "cap": None}], max_new_tokens_column="cap")[1][1].max_new_tokens is None
    assert "not a whole number of tokens above 0" in complaint([{**row, "cap": 0.5}], max_new_tokens_column="cap")


def test_a_named_prompt_that_holds_the_answer_is_refused():
    message = complaint([SHAPES["hh-rlhf"]], prompt_column="chosen")
    assert "column 'chosen' ends with a message of the assistant: leave the turn to be sampled out" in message


def test_a_named_response_that_repeats_the_prompt_is_not_learnt_twice():
    (example,) = read([SHAPES["UltraFeedback"]], response_column="chosen")[1]
    assert (example.prompt, example.response) == ("1+2=", "3")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rejected_column": "b"}, "rejected_column is set to 'b' without response_column"),
        ({"prompt_column": "p", "label_column": "l"}, "label_column is set to 'l' without response_column"),
        ({"messages_column": "m", "response_column": "r"}, "messages_column is set, and response_column too"),
    ],
)
def test_columns_that_contradict_each_other(options, message):
    assert message in complaint([SHAPES["prompt"]], **options)


# ------------------------------------------------------------------------------------- nothing taken for what it is not


def test_a_column_that_says_the_same_again_is_no_second_shape():
    rows = [{"problem": "1+2=", "solution": "It is \\boxed{3}", "messages": [asked("1+2="), said("It is \\boxed{3}")]}]
    assert read(rows)[1][0].answer == "3"
    rows = [{**SHAPES["Alpaca"], "text": "Below is ...\n1+2=\n5\n3"}]
    assert "text" not in read(rows)[1][0].metadata
    assert "or text, which says something else" in complaint([{**SHAPES["Alpaca"], "text": "Something else"}])
    rows = [{"prompt": "1+2=", "messages": [asked("1+2="), said("3")]}]
    assert str(read(rows)[0].shape("train")) == "demonstrations, conversational"


def test_an_input_that_is_empty_in_the_first_rows_is_read_in_later_ones():
    rows = [{"instruction": "1+2=", "input": "", "output": "3"}] * 100 + [
        {"instruction": "+", "input": "1 2", "output": "3"}
    ]
    examples = read(rows)[1]
    assert (examples[0].prompt, examples[-1].prompt) == ("1+2=", "+\n\n1 2")
    assert "### Input" not in examples[0].plain


def test_what_a_question_means_nothing_without_is_not_dropped():
    assert "column 'choices' belongs to the question" in complaint(
        [{"question": "?", "choices": ["a", "b"], "answer": "a"}]
    )
    (example,) = read([{"instruction": "Sum.", "context": "1 2", "response": "3"}])[1]
    assert example.prompt == "Sum.\n\n1 2"
    history = {"instruction": "4+4=", "output": "8", "history": [["1+1=", "2"]]}
    assert read([history])[1][0].prompt == [asked("1+1="), said("2"), asked("4+4=")]


def test_labels_that_are_classes_are_no_labels():
    row = {"prompt": "1+2=", "completion": "3", "label": "sums"}
    source, (example,) = read([row])
    assert (example.label, example.metadata) == (None, {"label": "sums"})
    assert "labels" not in source.shape("train").offers


@pytest.mark.parametrize(
    ("row", "what"),
    [
        (
            {"chosen": [asked("1="), said("2")], "rejected": [asked("2="), said("3")]},
            "shares no first message with the rejected one",
        ),
        (
            {"chosen": [SYSTEM, asked("1="), said("2")], "rejected": [SYSTEM, asked("2="), said("3")]},
            "parts from the rejected one at message 2",
        ),
        ({"chosen": "abc", "rejected": "xyz"}, "begins otherwise than the rejected one"),
        ({"chosen": told("3"), "rejected": "\n\nHuman: 5=\n\nAssistant: 5"}, "shares no first message"),
        (
            {"prompt": "9=", "chosen": [asked("1="), said("2")], "rejected": [asked("1="), said("3")]},
            "begins with something else than the prompt says",
        ),
        (
            {"system": "a", "messages": [{"role": "system", "content": "b"}, asked("1="), said("2")]},
            "begins with another system message",
        ),
    ],
)
def test_sides_that_do_not_fit_each_other_are_bad_rows(row, what):
    assert what in complaint([row])


def test_weights_that_say_what_is_done_anyway_are_passed_over():
    turns = [{"from": "human", "value": "q", "weight": 0}, {"from": "gpt", "value": "a", "weight": 1}]
    (example,) = as_source([{"conversations": turns}]).load("train")
    assert (example.prompt, example.response) == ([asked("q")], "a")


def test_turns_of_weight_0_are_not_learnt():
    turns = [
        asked("a"),
        {**said("b"), "weight": 0},
        asked("c"),
        {**said("d"), "weight": 1},
        asked("e"),
        {**said("f"), "weight": 0},
    ]
    (example,) = as_source([{"messages": turns}]).load("train")
    assert (example.prompt, example.response) == ([asked("a"), said("b"), asked("c")], "d")


def test_a_pair_ends_with_the_assistant():
    row = {"chosen": [asked("q"), said("x"), asked("z")], "rejected": [asked("q"), said("y")]}
    assert "column 'chosen' does not end with a turn of the assistant" in complaint([row])
    assert "column 'rejected' does not end with a turn of the assistant" in complaint(
        [{"chosen": told("3"), "rejected": told("")}]
    )
    assert "column 'rejected' holds nothing but what both begin with" in complaint(
        [{"chosen": "1+1= 2", "rejected": "1+1="}]
    )


def test_a_list_of_names_of_files_is_files(tmp_path):
    for number in (1, 2):
        (tmp_path / f"{number}.jsonl").write_text(json.dumps({"prompt": f"{number}+1="}) + "\n")
    names = [str(tmp_path / "1.jsonl"), str(tmp_path / "2.jsonl")]
    assert [example.prompt for example in as_source(names).load("train")] == ["1+1=", "2+1="]
    assert [example.prompt for example in as_source(["1+1=", "2+1="]).load("train")] == ["1+1=", "2+1="]


@pytest.mark.parametrize(
    ("turns", "what"),
    [
        ([{"from": "alien", "value": "?"}, {"from": "gpt", "value": "!"}], "has a message 1 from 'alien'"),
        ([{"from": "human", "value": ""}, {"from": "gpt", "value": "!"}], "has a message 1 without value"),
        ([said("3")], "begins with the assistant: there is nothing to answer"),
        ([asked("1="), {**said("3"), "weight": 0}], "whose weight is not 0: there is nothing to learn"),
        ([asked("1="), {**said("3"), "weight": 2}], "has a message 2 with the weight 2: a turn is learnt or not"),
        (
            [asked("1="), said("3"), asked("2="), {**said("4"), "weight": 0}, asked("5="), said("6")],
            "has a turn of the assistant with weight 0 between others",
        ),
        (
            [asked("1="), {**CALL, "tool_calls": "no JSON"}],
            "has a message 2 with a tool call that is text, and no JSON",
        ),
        (
            [{"role": "user", "content": [{"type": "input_audio"}]}, said("3")],
            "with audio: policies here read text alone",
        ),
    ],
)
def test_bad_turns(turns, what):
    assert what in complaint([{"messages": turns}])


# ------------------------------------------------------------------------------------------------------- conversations


def test_arguments_that_are_json_text_become_what_templates_write():
    call = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": {"name": "add", "arguments": '{"a": 1}'}}],
    }
    (example,) = read([{"messages": [asked("1="), call]}])[1]
    assert example.response[0]["tool_calls"] == [{"function": {"name": "add", "arguments": {"a": 1}}}]
    turns = [
        {"from": "human", "value": "1="},
        {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'},
    ]
    turns += [{"from": "observation", "value": "1"}, {"from": "gpt", "value": "1"}]
    (example,) = read([{"conversations": turns}])[1]
    assert [turn["role"] for turn in example.response] == ["assistant", "tool", "assistant"]
    assert example.response[0]["tool_calls"][0]["function"] == {"name": "add", "arguments": {"a": 1}}


def test_a_multi_turn_example_can_go_up_to_its_last_turn():
    (example,) = read([SHAPES["messages, several turns"]])[1]
    last = at_last_turn(example)
    assert last.prompt == [SYSTEM, asked("1+2="), said("3"), asked("4+2=")]
    assert last.response == "6"
    (single,) = read([SHAPES["messages"]])[1]
    assert at_last_turn(single) is single


@pytest.mark.parametrize(
    ("chosen", "rejected", "parts"),
    [
        ("The sky is blue.", "The sky is green.", ("The sky is", " blue.", " green.")),
        ("The sky is blue.", "The sky is black.", ("The sky is", " blue.", " black.")),
        ("Q: 1+1=2", "Q: 1+1=3", ("Q: 1+1=", "2", "3")),
        ("Q\nA\n1", "Q\nA\n2", ("Q\nA\n", "1", "2")),
    ],
)
def test_texts_part_inside_no_word(chosen, rejected, parts):
    (example,) = read([{"chosen": chosen, "rejected": rejected}])[1]
    assert (example.prompt, example.response, example.rejected) == parts


def test_a_bad_row_is_told_with_an_example_of_a_right_one():
    rows = [SHAPES["preference, messages"], {**SHAPES["preference, messages"], "rejected": None}]
    message = complaint(rows)
    assert "the train rows[1]: column 'rejected' is null" in message
    right = json.loads(message.split("a right one is ")[1].split(":\n")[0])
    assert right.keys() == rows[0].keys()
    assert read([right])[1][0].rejected == "It is 4."


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"answer": "4", "reward_model": {"ground_truth": "3"}}, None),
        ({"answer": "3", "ground_truth": "5"}, None),
        ({"answer": "4", "reward_model": '{"ground_truth": "3"}'}, None),
        ({"answer": "So\n#### 3", "reward_model": {"ground_truth": "3"}}, "So\n#### 3"),
        ({"answer": "3.0", "ground_truth": ["3", "4"]}, "3.0"),
        ({"answer": "3", "reward_model": "none"}, "3"),
        ({"answer": None, "reward_model": {"ground_truth": "3"}}, "3"),
    ],
)
def test_gold_answers_that_contradict_each_other_are_refused(row, found):
    rows = [{"prompt": "1+2=", **row}]
    if found is not None:
        assert as_source(rows).load("train")[0].answer == found
        return
    with pytest.raises(UserError, match="two gold answers contradict each other"):
        as_source(rows).load("train")

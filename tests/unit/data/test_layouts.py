"""Rows in the layouts of public data sets: each becomes the example that its authors mean, or one sentence says what to set."""

import pytest

from rl_lightning.data.sources import Example, as_source
from rl_lightning.errors import UserError
from tests.data_table import layouts

LAYOUTS = {one["name"]: one for one in layouts()}
READ = [name for name, one in LAYOUTS.items() if "line" in one]
REFUSED = [name for name in LAYOUTS if name not in READ]
FIELDS = ("prompt", "answer", "response", "rejected", "label")


def expected(one):
    fields = {name: one.get(name) for name in FIELDS}
    metadata = {column: one["row"][column] for column in one["metadata"]}
    return Example(**fields, metadata=metadata, template=one.get("template", {}))


def compared(example):
    return {**vars(example), "location": "", "plain": None}


@pytest.mark.parametrize("name", READ)
def test_a_public_layout_makes_its_example(name):
    one = LAYOUTS[name]
    source = as_source([one["row"]] * 2)
    assert [compared(example) for example in source.load("train")] == [compared(expected(one))] * 2
    assert str(source.shape("train")) == one["line"]


@pytest.mark.parametrize("name", READ)
def test_it_is_the_same_as_arrow_stores_it(name):
    datasets = pytest.importorskip("datasets")
    one = LAYOUTS[name]
    source = as_source(datasets.Dataset.from_list([one["row"]] * 2))
    (example, _), wanted = source.load("train"), expected(one)
    assert [getattr(example, field) for field in FIELDS[:3]] == [getattr(wanted, field) for field in FIELDS[:3]]
    assert str(source.shape("train")) == one["line"]


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_ambiguous_is_refused_in_one_sentence(name):
    with pytest.raises(UserError) as caught:
        as_source([LAYOUTS[name]["row"]] * 2).load("train")
    assert LAYOUTS[name]["refused"] in str(caught.value)


def test_one_column_of_a_data_set_is_a_list_of_prompts():
    datasets = pytest.importorskip("datasets")
    column = datasets.Dataset.from_list([{"prompt": "1+1="}, {"prompt": "2+2="}])["prompt"]
    assert [example.prompt for example in as_source(column).load("train")] == ["1+1=", "2+2="]


def test_what_is_said_is_a_way_out():
    row = LAYOUTS["open-r1/OpenR1-Math-220k"]["row"]
    (example,) = as_source([row], prompt_column="problem").load("train")
    assert (example.prompt, example.answer, example.response) == ("p", "3", None)
    assert as_source([row], messages_column="messages").load("train")[0].response == "<think>long</think> 3"
    row = LAYOUTS["google-research-datasets/mbpp"]["row"]
    (example,) = as_source([row], prompt_column="text", response_column="code").load("train")
    assert (example.prompt, example.response) == ("Write a function", "def f(): pass")
    row = LAYOUTS["openbmb/UltraInteract_pair"]["row"]
    columns = {"prompt_column": "trajectory", "response_column": "chosen", "rejected_column": "rejected"}
    assert as_source([row], **columns).load("train")[0].prompt == [{"role": "user", "content": "q"}]
    row = LAYOUTS["hotpotqa/hotpot_qa"]["row"]
    assert as_source([row], prompt_column="question").load("train")[0].prompt == "q"
    row = LAYOUTS["lvwerra/stack-exchange-paired"]["row"]
    columns = {"response_column": "response_j", "rejected_column": "response_k"}
    (example,) = as_source([row], **columns).load("train")
    assert (example.prompt, example.response, example.rejected) == ("q", "good", "bad")

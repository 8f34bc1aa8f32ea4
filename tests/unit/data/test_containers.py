"""Rows in every container make the same examples; a share is held out; what Python hands over is read."""

import csv
import gzip
import json
import re

import pytest

from rl_lightning.data.sources import ChainSum, DatasetExamples, Example, FileExamples, TableExamples, as_source
from rl_lightning.errors import UserError
from tests.shapes import SHAPES, asked

ROWS = [{"prompt": f"{n}+1=", "answer": str(n + 1), "level": n} for n in range(6)]


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_csv(path, rows, separator=","):
    """Lists and dicts as JSON, as a CSV file can hold nothing else."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=separator)
        writer.writeheader()
        cells = [{k: json.dumps(v) if isinstance(v, list | dict) else v for k, v in row.items()} for row in rows]
        writer.writerows(cells)


def write_parquet(path, rows):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def containers(folder, rows):
    """Yield (name, source) for the same rows in every container."""
    write_lines(folder / "a.jsonl", rows)
    (folder / "a.json").write_text(json.dumps(rows, indent=1))
    write_csv(folder / "a.csv", rows)
    write_csv(folder / "a.tsv", rows, "\t")
    write_parquet(folder / "a.parquet", rows)
    for name in ("a.jsonl", "a.json", "a.csv"):
        (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes()))
    yield from ((path.name, FileExamples(str(path))) for path in sorted(folder.iterdir()))
    shards = folder / "shards" / "data"
    shards.mkdir(parents=True)
    for number in range(2):
        write_parquet(
            shards / f"train-{number:05}-of-00002.parquet",
            rows[number * len(rows) // 2 : (number + 1) * len(rows) // 2],
        )
    write_parquet(shards / "test-00000-of-00001.parquet", rows[:1])
    yield "folder of shards", FileExamples(str(folder / "shards"))
    yield "pattern", FileExamples(str(shards / "train-*.parquet"))
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    dataset = datasets.Dataset.from_list(rows)
    datasets.DatasetDict({"train": dataset}).save_to_disk(folder / "saved")
    yield "save_to_disk", DatasetExamples(str(folder / "saved"))
    yield "save_to_disk, by its path", FileExamples(str(folder / "saved"))
    yield "Dataset", as_source(dataset)
    yield "list", as_source(rows)
    yield "DataFrame", as_source(pytest.importorskip("pandas").DataFrame(rows))


def comparable(example):
    # A number in a CSV file is text.
    metadata = {key: str(value) for key, value in example.metadata.items()}
    return {**vars(example), "location": "", "metadata": metadata}


@pytest.mark.parametrize("name", SHAPES)
def test_every_container_makes_the_same_examples(name, tmp_path):
    rows = [SHAPES[name]] * 4
    (_, first), *others = containers(tmp_path, rows)
    wanted = [comparable(example) for example in first.load("train")]
    for container, source in others:
        found = [comparable(example) for example in source.load("train")]
        if name == "verl":  # a dict in a column that is passed on is text in a CSV file
            found, wanted = ([{**one, "metadata": sorted(one["metadata"])} for one in side] for side in (found, wanted))
        assert found == wanted, container
        assert str(source.shape("train")) == str(first.shape("train")), container


# ---------------------------------------------------------------------------------------------------------------- files


def test_rows_of_an_array_have_the_lines_where_they_begin(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[\n {"prompt": "1="},\n\n {"prompt": "2=",\n  "answer": 3}, 4\n]\n')
    with pytest.raises(UserError, match=r"a.json:5: not a JSON object but of type int"):
        FileExamples(str(path)).load("train")
    path.write_text('[\n {"prompt": "1="},\n\n {"prompt":\n  "2="}]\n')
    assert [one.location for one in FileExamples(str(path)).load("train")] == [f"{path}:2", f"{path}:4"]
    path.write_text('[\n {"prompt": "1="}\n {"prompt": "2="}]')
    with pytest.raises(UserError, match=r"a.json:3: invalid JSON: Expecting ',' or '\]'"):
        FileExamples(str(path)).load("train")
    path.write_text('{\n "prompt": "1="\n}\n')
    with pytest.raises(UserError, match="holds one JSON object over several lines"):
        FileExamples(str(path)).load("train")


def test_fields_of_a_csv_file(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('\ufeffprompt;answer\n"1;\n2=";3\n4=;5;6\n7=;8\n')
    with pytest.raises(UserError, match=r"a.csv:4: has 3 fields, and the header 2"):
        FileExamples(str(path)).load("train")
    path.write_text('prompt;answer\n"1;\n2=";3\n7=;8\n')
    examples = FileExamples(str(path)).load("train")
    assert [(one.prompt, one.answer) for one in examples] == [("1;\n2=", "3"), ("7=", "8")]
    assert [one.location for one in examples] == [f"{path}:2", f"{path}:4"]
    path.write_text("prompt,completion,label\n1=,2,True\n1=,3,0\n")
    assert [one.label for one in FileExamples(str(path)).load("train")] == [1.0, 0.0]
    path.write_bytes("prompt\nä=\n".encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8 text: save it as UTF-8"):
        FileExamples(str(path)).load("train")


def test_lists_that_pandas_wrote_to_a_csv_file_are_bad_rows(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("""messages\n"[{'role': 'user', 'content': '1='}, {'role': 'assistant', 'content': '1'}]"\n""")
    with pytest.raises(
        UserError, match=r"a.csv:2: column 'messages' is text, and no JSON \(lists and dicts in a text file"
    ):
        FileExamples(str(path)).load("train")


def test_a_folder_gives_each_split_its_own_files(tmp_path):
    for split, part in (("train", ROWS[:4]), ("validation", ROWS[4:5]), ("test", ROWS[5:])):
        write_lines(tmp_path / f"{split}-00000.jsonl", part)
    source = as_source(str(tmp_path))
    assert [[one.answer for one in source.load(split)] for split in ("train", "val", "test")] == [
        ["1", "2", "3", "4"],
        ["5"],
        ["6"],
    ]
    (tmp_path / "train-00000.jsonl").unlink()
    with pytest.raises(UserError, match="has files of test, val, but none of train"):
        FileExamples(str(tmp_path)).load("train")


def test_files_of_several_kinds_in_a_folder_are_not_read_together(tmp_path):
    write_lines(tmp_path / "a.jsonl", ROWS)
    write_csv(tmp_path / "a.csv", ROWS)
    with pytest.raises(UserError, match=r"has .csv and .jsonl files; name those to read"):
        FileExamples(str(tmp_path)).load("train")


def test_lists_and_patterns_of_files(tmp_path):
    for name, part in (("b", ROWS[:2]), ("a", ROWS[2:4]), ("c", ROWS[4:])):
        write_lines(tmp_path / f"{name}.jsonl", part)
    named = FileExamples([str(tmp_path / "b.jsonl"), str(tmp_path / "a.jsonl")])
    assert [one.answer for one in named.load("train")] == ["1", "2", "3", "4"]
    assert [one.answer for one in FileExamples(str(tmp_path / "*.jsonl")).load("train")] == [
        "3",
        "4",
        "1",
        "2",
        "5",
        "6",
    ]
    with pytest.raises(UserError, match="no file fits"):
        FileExamples(str(tmp_path / "*.csv")).load("train")


# --------------------------------------------------------------------------------------------------------------- shares


def test_a_share_is_the_same_rows_whatever_their_order_and_none_of_the_training_ones():
    rows = [{"prompt": f"{n}=", "answer": str(k)} for n in range(50) for k in range(2)]
    source = TableExamples(rows, val=0.1)
    train, val = source.load("train"), source.load("val")
    assert len(train) == 90 and len(val) == 10
    assert not {one.prompt for one in train} & {one.prompt for one in val}
    turned = TableExamples(rows[::-1], val=0.1)
    assert {one.prompt for one in turned.load("val")} == {one.prompt for one in val}
    assert [one.location for one in TableExamples(rows, val="10").load("val")] == [one.location for one in val]
    assert source.load("val") == val == source.load("test")


@pytest.mark.parametrize(
    ("val", "message"),
    [(0, "neither a share"), (-0.1, "neither a share"), (1.5, "neither a share"), (6, "leaves none to train on")],
)
def test_a_share_that_cannot_be(val, message):
    with pytest.raises(UserError, match=message):
        TableExamples(ROWS, val=val).load("train")


def test_rows_without_a_held_out_split(tmp_path):
    source = as_source(ROWS)
    assert source.has("train") and not source.has("val") and not source.has("test")
    with pytest.raises(
        UserError,
        match=r"`val` is not set: hand over rows by split, .*; a share of the training data will do, such as val: 0.02",
    ):
        source.load("val")


# --------------------------------------------------------------------------------------------------------------- Python


def test_whatever_is_at_hand_becomes_a_source(tmp_path):
    source = ChainSum(train_size=2)
    assert as_source(source) is source
    with pytest.raises(UserError, match="val: give these to ChainSum itself"):
        as_source(source, val=0.1)
    assert [one.prompt for one in as_source(["1=", "2="]).load("train")] == ["1=", "2="]
    examples = [Example("1="), Example("2=")]
    assert as_source(examples).load("train") == examples
    write_lines(tmp_path / "a.jsonl", ROWS)
    assert len(as_source(tmp_path / "a.jsonl", val=0.5).load("val")) == 3
    by_split = as_source({"train": ROWS[:4], "validation": ROWS[4:]})
    assert [len(by_split.load(split)) for split in ("train", "val", "test")] == [4, 2, 2]
    assert as_source({"train": str(tmp_path / "a.jsonl")}).load("train")[5].answer == "6"
    hub = as_source("openai/gsm8k:main")
    assert (hub.path, hub.name) == ("openai/gsm8k", "main")
    with pytest.raises(UserError, match=r"there is no file nowhere\.jsonl"):
        as_source("nowhere.jsonl").load("train")
    assert [one.answer for one in as_source({"prompt": ["1=", "2="], "answer": [1, 2]}).load("train")] == ["1", "2"]
    assert [one.prompt for one in as_source([[asked("1=")], [asked("2=")]]).load("train")] == [
        [asked("1=")],
        [asked("2=")],
    ]
    for value in (3, object(), {"prompt": "1="}):
        with pytest.raises(UserError, match="what is taken: a source of examples, a path"):
            as_source(value)
    with pytest.raises(UserError, match=r"the train rows\[1\]: not a dict but of type int"):
        as_source([ROWS[0], 3]).load("train")


def test_a_dict_of_datasets_is_read_by_the_names_of_its_splits():
    datasets = pytest.importorskip("datasets")
    parts = {"train": ROWS[:4], "dev": ROWS[4:5], "test": ROWS[5:]}
    source = as_source(datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in parts.items()}))
    assert [[one.answer for one in source.load(split)] for split in ("val", "test")] == [["5"], ["6"]]


def test_keys_that_arrow_adds_are_no_part_of_tools_and_calls(tmp_path):
    rows = [SHAPES["messages with tools"], {"messages": SHAPES["messages"]["messages"], "tools": "[]"}]
    other = json.loads(json.dumps(SHAPES["messages with tools"]))
    other["messages"][1]["tool_calls"][0]["function"]["arguments"] = {"b": "5"}
    write_parquet(tmp_path / "a.parquet", [*rows, other])
    examples = FileExamples(str(tmp_path / "a.parquet")).load("train")
    called = [one.response[0]["tool_calls"][0]["function"]["arguments"] for one in (examples[0], examples[2])]
    assert called == [{"a": "1+2"}, {"b": "5"}]


def test_splits_by_other_names_are_named_and_chosen(tmp_path):
    datasets = pytest.importorskip("datasets")
    pairs = datasets.Dataset.from_list([SHAPES["UltraFeedback"]] * 3)
    chats = datasets.Dataset.from_list([SHAPES["messages"]] * 4)
    whole = datasets.DatasetDict({"train_prefs": pairs, "train_sft": chats, "test_prefs": pairs})
    whole.save_to_disk(tmp_path / "saved")
    shards = tmp_path / "hub" / "data"
    shards.mkdir(parents=True)
    for name, rows in whole.items():
        rows.to_parquet(shards / f"{name}-00000-of-00001.parquet")
    for given in (whole, str(tmp_path / "saved"), str(tmp_path / "hub")):
        with pytest.raises(UserError, match=r"train_prefs, train_sft.*: choose the one .*split: train_prefs"):
            as_source(given).load("train")
        assert len(as_source(given, split="train_prefs").load("train")) == 3
        assert len(as_source(given, split="train_sft").load("train")) == 4
        with pytest.raises(UserError, match=r"no .*split 'train_dpo'"):
            as_source(given, split="train_dpo").load("train")
    assert len(DatasetExamples(str(tmp_path / "saved"), split="train_prefs[:2]").load("train")) == 2
    with pytest.raises(UserError, match="mean the same"):
        DatasetExamples("x", train="a", split="b")
    assert len(as_source({"default": [{"prompt": "1="}]}).load("train")) == 1
    assert len(as_source({"test": [{"prompt": "1="}]}, split="test").load("train")) == 1
    with pytest.raises(UserError, match="has no splits"):
        as_source(pairs, split="train_prefs")


@pytest.mark.parametrize(
    ("orient", "said"),
    [
        (
            "columns",
            "holds a dict with the keys 0, 1 (this is a table of pandas in one object: write df.to_json(path, orient=",
        ),
        ("index", "this is a table of pandas in one object"),
        ("split", "this is a table of pandas in one object"),
        ("table", "it holds one object whose 'data' is a list of rows: write that list alone"),
    ],
)
def test_a_table_that_pandas_wrote_otherwise_than_by_rows_is_told(tmp_path, orient, said):
    pandas = pytest.importorskip("pandas")
    path = tmp_path / "a.json"
    pandas.DataFrame([{"prompt": "1=", "answer": "1"}, {"prompt": "2=", "answer": "2"}]).to_json(path, orient=orient)
    with pytest.raises(UserError, match=re.escape(said)):
        FileExamples(str(path)).load("train")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.jsonl.gz"])
def test_text_in_another_encoding_is_one_line(tmp_path, name, encoding):
    text = "prompt,answer\n1=,1\n" if name == "a.csv" else json.dumps(ROWS[0])
    data = text.encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    with pytest.raises(UserError, match="is UTF-16 or UTF-32 text, or no text at all: save it as UTF-8") as caught:
        FileExamples(str(tmp_path / name)).load("train")
    assert "\n" not in str(caught.value)


def test_an_ending_alone_is_no_likeness(tmp_path):
    (tmp_path / "61.csv").write_text("prompt\n1=\n")
    (tmp_path / "train.jsonl").write_text('{"prompt": "1="}\n')
    with pytest.raises(UserError) as caught:
        FileExamples(str(tmp_path / "1.csv")).load("train")
    assert "did you mean" not in str(caught.value)
    with pytest.raises(UserError, match=r"did you mean train\.jsonl\?"):
        FileExamples(str(tmp_path / "trian.jsonl")).load("train")


def test_rows_that_python_hands_over_and_that_are_none(tmp_path):
    with pytest.raises(UserError, match="keys are no names of columns"):
        as_source([{1: "a"}]).load("train")
    with pytest.raises(UserError, match="Examples and a dict are in one list"):
        as_source([Example("1="), {"prompt": "2="}])
    with pytest.raises(UserError, match="columns of different lengths: prompt 2, answer 1"):
        as_source({"prompt": ["1=", "2="], "answer": ["1"]})

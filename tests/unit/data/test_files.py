"""Examples from files: what is read, and how bad rows are reported."""

import builtins
import gzip
import json
import logging
import subprocess
import sys

import pytest

from rl_lightning.data.sources import FileExamples
from rl_lightning.errors import UserError

ROWS = [
    {"prompt": "1+1=", "answer": "2", "level": 1},
    {"prompt": "2+2=", "answer": "4", "level": 2},
    {"prompt": "3+3=", "answer": "6", "level": 3},
]


def write(path, rows):
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return str(path)


def load(path, rows, **arguments):
    return FileExamples(train=write(path, rows), **arguments).load("train")


def complaint(path, rows, **arguments):
    with pytest.raises(UserError) as caught:
        load(path, rows, **arguments)
    return str(caught.value)


def test_rows_become_examples_in_order_with_their_places(tmp_path):
    path = tmp_path / "train.jsonl"
    examples = load(path, ROWS)
    assert [(e.prompt, e.answer, e.response) for e in examples] == [
        ("1+1=", "2", None),
        ("2+2=", "4", None),
        ("3+3=", "6", None),
    ]
    assert [e.location for e in examples] == [f"{path}:1", f"{path}:2", f"{path}:3"]
    assert [e.metadata for e in examples] == [{"level": 1}, {"level": 2}, {"level": 3}]


def test_blank_lines_and_a_byte_order_mark_are_no_rows_but_lines_still_count(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(
        b"\xef\xbb\xbf" + json.dumps(ROWS[0]).encode() + b"\n\n  \n" + json.dumps(ROWS[1]).encode() + b"\n\n"
    )
    assert [e.location for e in FileExamples(train=str(path)).load("train")] == [f"{path}:1", f"{path}:4"]


def test_compressed_file(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.write("".join(json.dumps(row) + "\n" for row in ROWS))
    assert [e.answer for e in FileExamples(train=str(path)).load("train")] == ["2", "4", "6"]
    path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(UserError, match="cannot be read"):
        FileExamples(train=str(path)).load("train")


def test_parquet_file_gives_what_json_lines_give(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in ROWS]
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    examples = FileExamples(train=str(path)).load("train")
    lines = load(tmp_path / "a.jsonl", rows)
    assert [(e.prompt, e.answer, e.metadata) for e in examples] == [(e.prompt, e.answer, e.metadata) for e in lines]
    assert examples[2].location == f"{path}:3"
    path.write_bytes(b"no parquet")
    with pytest.raises(UserError, match=r"a.parquet cannot be read"):
        FileExamples(train=str(path)).load("train")


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"")
    real = builtins.__import__

    def without_pyarrow(name, *args, **kwargs):
        if name.split(".")[0] == "pyarrow":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_pyarrow)
    with pytest.raises(UserError, match=r"pip install 'rl_lightning\[data\]'"):
        FileExamples(train=str(tmp_path / "a.parquet")).load("train")


def test_columns_by_name(tmp_path):
    rows = [{"question": "1+1=", "gold": 2, "work": "1,2#2", "level": 1, "id": "x"}]
    columns = {"prompt_column": "question", "answer_column": "gold", "response_column": "work"}
    (example,) = load(tmp_path / "a.jsonl", rows, **columns)
    assert (example.prompt, example.answer, example.response) == ("1+1=", "2", "1,2#2")
    assert example.metadata == {"level": 1, "id": "x"}
    (example,) = load(tmp_path / "a.jsonl", rows, **columns, metadata_columns=["id"])
    assert example.metadata == {"id": "x"}
    (example,) = load(tmp_path / "a.jsonl", rows, **columns, metadata_columns=[])
    assert example.metadata == {}


def test_metadata_that_a_row_lacks_is_none(tmp_path):
    rows = [{**ROWS[0], "hint": "two"}, ROWS[1]]
    assert [e.metadata for e in load(tmp_path / "a.jsonl", rows, metadata_columns=["hint"])] == [
        {"hint": "two"},
        {"hint": None},
    ]


def test_no_answer_column_means_no_answers(tmp_path):
    (example,) = load(tmp_path / "a.jsonl", ["{" + '"prompt": "hello"' + "}\n"], answer_column=None)
    assert example.answer is None


@pytest.mark.parametrize(("value", "text"), [(42, "42"), (0.5, "0.5"), (-3, "-3"), ("42", "42")])
def test_an_answer_may_be_a_number(tmp_path, value, text):
    assert load(tmp_path / "a.jsonl", [{"prompt": "?", "answer": value}])[0].answer == text


@pytest.mark.parametrize("value", [True, ["1", "2"], {"ground_truth": "72", "style": "rule"}, "2+3=5\n#### 5"])
def test_an_answer_is_passed_on_as_it_is(tmp_path, value):
    assert load(tmp_path / "a.jsonl", [{"prompt": "?", "answer": value}])[0].answer == value


def test_chat_messages(tmp_path):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1=", "name": None}]
    (example,) = load(tmp_path / "a.jsonl", [{"prompt": messages, "answer": "2"}])
    assert example.prompt == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1="}]


def test_limit_reads_the_first_rows_and_no_others(tmp_path):
    assert [e.answer for e in load(tmp_path / "a.jsonl", [*ROWS[:2], "not json\n"], limit=2)] == ["2", "4"]
    with pytest.raises(UserError, match="limit must be at least 1, not 0"):
        FileExamples(train="a.jsonl", limit=0)


def test_every_bad_row_is_reported_at_once(tmp_path):
    path = tmp_path / "a.jsonl"
    message = complaint(
        path,
        [
            ROWS[0],
            '{"prompt": "1\n',
            "[1, 2]\n",
            {"answer": "2"},
            {"prompt": None, "answer": "2"},
            {"prompt": "  ", "answer": "2"},
            {"prompt": 3, "answer": "2"},
            {"prompt": "3", "answer": None},
            {"prompt": "", "answer": {}},
            {"prompt": "3", "answer": float("nan")},
        ],
    )
    head, *lines = message.split("\n")
    assert head == f'{path} has rows that cannot be used; a right one is {{"prompt": "1+2=", "answer": "3"}}:'
    # Lines that are no rows come first, since a column that no row has can be told only when all are read.
    assert sorted(line.strip().removeprefix(f"{path}:") for line in lines) == sorted(
        [
            "2: invalid JSON: Invalid control character at column 14",
            "3: not a JSON object but of type list",
            "4: column 'prompt' is missing",
            "5: column 'prompt' is null",
            "6: column 'prompt' is empty",
            "7: column 'prompt' is of type int, not text",
            "8: column 'answer' is null",
            "9: column 'prompt' is empty",
            "9: column 'answer' is empty",
            "10: column 'answer' is of type float, not text",
        ]
    )


def test_a_line_that_is_no_utf8_is_a_bad_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(json.dumps(ROWS[0]).encode() + b'\n{"prompt": "\xff", "answer": "1"}\n')
    with pytest.raises(UserError, match=r"a.jsonl:2: not UTF-8 text"):
        FileExamples(train=str(path)).load("train")


@pytest.mark.parametrize(
    ("prompt", "what"),
    [
        ([], "is empty"),
        (["1+1="], "holds a list of str, and no text and no messages"),
        ([{"role": "user"}], "has a message 1 without content"),
        ([{"role": "user", "content": "a"}, {"content": "b"}], "has a message 2 without role"),
        ([{"role": "user", "content": ["a"]}], "has a message 1 whose content is of type list, not text"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "ends with a message of the assis"),
    ],
)
def test_bad_messages(tmp_path, prompt, what):
    assert f"column 'prompt' {what}" in complaint(tmp_path / "a.jsonl", [{"prompt": prompt, "answer": "2"}])


def test_twenty_bad_rows_are_shown_and_the_rest_counted(tmp_path):
    message = complaint(tmp_path / "a.jsonl", [{"prompt": "", "answer": "1"}] * 23)
    assert message.count("column 'prompt' is empty") == 20
    assert message.endswith("... and 3 more")
    assert "more" not in complaint(tmp_path / "a.jsonl", [{"prompt": "", "answer": "1"}] * 20)


def test_a_column_that_no_row_has_is_one_problem_that_names_those_there_are(tmp_path):
    rows = [{"question": "1", "gold": "2"}] * 30
    message = complaint(tmp_path / "a.jsonl", rows, prompt_column="prompt", answer_column="answer")
    assert message.count("\n") == 2
    assert "no column 'prompt' (prompt_column): its columns are question, gold" in message
    assert "no column 'answer' (answer_column)" in message
    message = complaint(tmp_path / "a.jsonl", ROWS, metadata_columns=["source"])
    assert "no column 'source' (metadata_columns): its columns are prompt, answer, level" in message


def test_empty_file(tmp_path):
    assert "a.jsonl is empty" in complaint(tmp_path / "a.jsonl", [])
    assert "a.jsonl is empty" in complaint(tmp_path / "a.jsonl", ["\n\n"])


def test_a_missing_file_names_near_misses(tmp_path):
    write(tmp_path / "train.jsonl", ROWS)
    with pytest.raises(UserError, match=r"there is no file .*trian.jsonl; did you mean train.jsonl\?"):
        FileExamples(train=str(tmp_path / "trian.jsonl")).load("train")
    with pytest.raises(UserError, match=r"there is no folder .*nowhere"):
        FileExamples(train=str(tmp_path / "nowhere" / "train.jsonl")).load("train")


def test_empty_directories_and_unknown_kinds_of_file_are_refused(tmp_path):
    with pytest.raises(UserError, match="there is no data file in the folder"):
        FileExamples(train=str(tmp_path)).load("train")
    write(tmp_path / "a.txt", ROWS)
    with pytest.raises(UserError, match=r"a.txt is no .jsonl"):
        FileExamples(train=str(tmp_path / "a.txt")).load("train")


def test_the_validation_file_stands_in_for_the_test_file_and_says_so(tmp_path, caplog):
    train, val = write(tmp_path / "train.jsonl", ROWS[:1]), write(tmp_path / "val.jsonl", ROWS[1:])
    source = FileExamples(train=train, val=val)
    assert caplog.text == ""
    with caplog.at_level(logging.WARNING):
        assert source.load("test") == source.load("val") != source.load("train")
    assert "no test data are given" in caplog.text
    test = write(tmp_path / "test.jsonl", ROWS[2:])
    assert [e.answer for e in FileExamples(train=train, val=val, test=test).load("test")] == ["6"]


def test_a_split_without_a_path_is_an_error(tmp_path):
    source = FileExamples(train=write(tmp_path / "train.jsonl", ROWS))
    for split in ("val", "test"):
        with pytest.raises(UserError, match=f"the {split} split is asked for, but `{split}` is not set"):
            source.load(split)
    with pytest.raises(UserError, match="give at least one of train, val and test"):
        FileExamples()


def test_sources_import_no_optional_package():
    # Loaded by path, so that what the packages above bring along does not count.
    code = (
        "import sys, types, pathlib, rl_lightning.errors\n"
        "package = types.ModuleType('rl_lightning.data')\n"
        "package.__path__ = [str(pathlib.Path(rl_lightning.errors.__file__).parent / 'data')]\n"
        "sys.modules['rl_lightning.data'] = package\n"
        "before = set(sys.modules)\n"
        "import rl_lightning.data.sources\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print(*sorted(new & {'torch', 'transformers', 'datasets', 'pyarrow', 'reasoning_gym', 'numpy'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""

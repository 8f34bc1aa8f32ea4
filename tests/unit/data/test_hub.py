"""Examples through the `datasets` library, from directories (the hub is out of reach in tests)."""

import builtins
import json

import pytest

from rl_lightning.data.sources import DatasetExamples
from rl_lightning.errors import UserError

COLUMNS = {"prompt_column": "question", "answer_column": "gold"}


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    datasets = pytest.importorskip("datasets")
    patch = pytest.MonkeyPatch()
    patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
    patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    yield datasets
    patch.undo()


def rows(*numbers):
    return [{"question": f"{n}+{n}=", "gold": 2 * n, "level": n} for n in numbers]


@pytest.fixture
def saved(datasets, tmp_path):
    """A directory that `save_to_disk` wrote."""
    splits = {"train": rows(1, 2, 3), "validation": rows(4)}
    path = tmp_path / "saved"
    datasets.DatasetDict({name: datasets.Dataset.from_list(part) for name, part in splits.items()}).save_to_disk(path)
    return str(path)


@pytest.fixture
def folder(datasets, tmp_path):
    """A directory of data files."""
    path = tmp_path / "folder"
    path.mkdir()
    for name, part in (("train", rows(1, 2, 3)), ("test", rows(4))):
        (path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return str(path)


def test_saved_directory(saved):
    source = DatasetExamples(saved, test=None, **COLUMNS)
    examples = source.load("train")
    assert [(e.prompt, e.answer, e.metadata) for e in examples] == [
        ("1+1=", "2", {"level": 1}),
        ("2+2=", "4", {"level": 2}),
        ("3+3=", "6", {"level": 3}),
    ]
    assert examples[2].location == f"{saved}[train]:3"
    assert source.load("val") == source.load("test")
    assert [e.answer for e in source.load("val")] == ["8"]


def test_folder_of_files_with_split_names_and_slices(folder):
    source = DatasetExamples(folder, train="train[:2]", val="train[2:]", **COLUMNS)
    assert [e.answer for e in source.load("train")] == ["2", "4"]
    assert [e.answer for e in source.load("val")] == ["6"]
    assert [e.answer for e in source.load("test")] == ["8"]


def test_limit(saved):
    assert [e.answer for e in DatasetExamples(saved, limit=2, **COLUMNS).load("train")] == ["2", "4"]


def test_bad_rows_and_columns_are_reported_as_those_of_files(datasets, saved, tmp_path):
    with pytest.raises(UserError, match=r"no column 'prompt' \(prompt_column\): its columns are question, gold, level"):
        DatasetExamples(saved, prompt_column="prompt").load("train")
    bad = datasets.Dataset.from_list([{"prompt": "a"}, {"prompt": None}, {"prompt": ""}])
    datasets.DatasetDict({"train": bad}).save_to_disk(tmp_path / "bad")
    with pytest.raises(UserError) as caught:
        DatasetExamples(str(tmp_path / "bad"), answer_column=None).load("train")
    assert str(caught.value).split("\n")[1:] == [
        f"  {tmp_path}/bad[train]:2: column 'prompt' is null",
        f"  {tmp_path}/bad[train]:3: column 'prompt' is empty",
    ]


def test_split_that_is_not_there(saved, folder):
    with pytest.raises(UserError, match="has no split 'test'; it has train, validation"):
        DatasetExamples(saved, test="test", **COLUMNS).load("test")
    with pytest.raises(UserError, match=r"validation.* cannot be loaded: .*train"):
        DatasetExamples(folder, val="validation", **COLUMNS).load("val")
    assert not DatasetExamples(folder, **COLUMNS).has("val")


def test_saved_directory_with_a_configuration_or_without_splits(datasets, saved, tmp_path):
    with pytest.raises(UserError, match="has no configuration 'main'"):
        DatasetExamples(saved, "main", **COLUMNS).load("train")
    datasets.Dataset.from_list(rows(1, 2, 3)).save_to_disk(tmp_path / "one")
    source = DatasetExamples(str(tmp_path / "one"), train="train[:2]", val="train[2:]", **COLUMNS)
    assert [[e.answer for e in source.load(split)] for split in ("train", "val")] == [["2", "4"], ["6"]]
    assert not DatasetExamples(str(tmp_path / "one"), **COLUMNS).has("test")


def test_parts_of_what_was_saved(saved):
    source = DatasetExamples(saved, train="train[:67%]+validation", val="train[-1:]", **COLUMNS)
    assert [[e.answer for e in source.load(split)] for split in ("train", "val")] == [["2", "4", "8"], ["6"]]


def test_no_such_dataset_is_one_line(datasets, saved):
    with pytest.raises(UserError, match=r"^DatasetExamples: nobody/nothing cannot be loaded: [^\n]+(\nmore: .+)?$"):
        DatasetExamples("nobody/nothing", **COLUMNS).load("train")
    with pytest.raises(UserError, match=r"there is no directory .*savd; did you mean saved\?(\nmore: .+)?$"):
        DatasetExamples(saved.replace("saved", "savd"), **COLUMNS).load("train")


def test_without_the_library_the_extra_is_named(monkeypatch):
    real = builtins.__import__

    def without_datasets(name, *args, **kwargs):
        if name == "datasets":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_datasets)
    with pytest.raises(UserError, match=r"pip install 'rl_lightning\[data\]'"):
        DatasetExamples("a").load("train")

"""Examples that Python hands over: data sets, lists of dicts, paths."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, TypeGuard

from rl_lightning.data.sources.base import Example, ExampleSource, Split
from rl_lightning.data.sources.containers import kind_of
from rl_lightning.data.sources.conversations import is_conversation
from rl_lightning.data.sources.files import FileExamples
from rl_lightning.data.sources.head import TELLING, Row, plain
from rl_lightning.data.sources.hub import DatasetExamples, dataset_rows, is_saved, the_one
from rl_lightning.data.sources.paths import SPLIT_NAMES, splits_in
from rl_lightning.data.sources.problems import Problems
from rl_lightning.data.sources.share import Share
from rl_lightning.data.sources.tables import Table, TableSource
from rl_lightning.errors import UserError

_TAKEN = (
    "a source of examples, a path, the name of a dataset on the hub, a datasets.Dataset or DatasetDict, a pandas.DataFrame, "
    "a list of dicts, of prompts (texts or conversations) or of Examples, or a dict of columns"
)


class TableExamples(TableSource):
    """Examples from rows that are there already, for use in Python.

    Rows are recognised and checked as those of `FileExamples` are.

    Args:
        train: the training rows: a ``datasets.Dataset``, a ``pandas.DataFrame``, or a list of dicts or of prompts.
        val: the validation rows, or the share of the training rows to hold out, such as 0.02, or their number; there is no
            validation if None.
        test: the test rows; the validation rows if None.
        **column_options: prompt_column and so on, for columns that are not recognised, and limit: see `TableSource`.

    Raises:
        UserError: if something else is given.

    Example:
        >>> source = TableExamples([{"prompt": "1+1=", "answer": "2"}, {"prompt": "2+2=", "answer": 4}])
        >>> [example.answer for example in source.load("train")]
        ['2', '4']
    """

    advice: ClassVar[str] = 'hand over rows by split, such as {{"train": [...], "{}": [...]}}'

    def __init__(self, train: Any = None, val: Any = None, test: Any = None, **column_options: Any) -> None:
        share = Share.of(val)
        super().__init__(share, **column_options)
        given: dict[Split, object] = {"train": train, "val": None if share else val, "test": test}
        self.tables = {split: as_table(rows, f"the {split} rows") for split, rows in given.items() if rows is not None}
        if not self.tables:
            raise UserError("TableExamples: give at least one of train, val and test")

    def table(self, split: Split) -> Table | None:
        """Return the rows of a split; None if none were given."""
        return self.tables.get(split)


class ListedExamples(ExampleSource):
    """Examples that are there already.

    Args:
        examples: by split; validation ones stand in for test ones that are not given.
    """

    def __init__(self, examples: Mapping[Split, Sequence[Example]]) -> None:
        self.examples = examples

    def has(self, split: Split) -> bool:
        """Tell whether there is a split."""
        return split in self.examples or (split == "test" and "val" in self.examples)

    def load(self, split: Split) -> list[Example]:
        """Return the examples of a split; for `test` those of `val` if there are no others.

        Raises:
            UserError: if there are none.
        """
        if not self.has(split):
            raise UserError(f"there are no {split} examples")
        return list(self.examples[split if split in self.examples else "val"])


def as_source(value: object, **options: Any) -> ExampleSource:
    """Return a source of examples for whatever someone has at hand.

    Args:
        value: an `ExampleSource`, which is returned as it is; the path of a file, a folder or a pattern; the name of a dataset on
            the hub, with its configuration after a colon if it needs one (``"openai/gsm8k:main"``); a ``datasets.Dataset``; a
            ``datasets.DatasetDict`` or another dict of such values by split; a ``pandas.DataFrame``; or a list of dicts, of
            prompts (texts or conversations), or of `Example`; or a dict of such lists by column. The splits of a dict, of a folder or of a dataset are found by their names: train,
            validation (or val, dev, ...) and test.
        **options: of the source: ``val=0.02`` holds a share of the training rows out, ``split="train_prefs"`` chooses the split to
            train on where they have other names, ``prompt_column="question"`` names a column that is not recognised; see
            `TableExamples`.

    Raises:
        UserError: for a value of another type, with the types that are taken; for options beside a source that is made already.

    Example:
        >>> as_source([{"prompt": "1+1=", "answer": "2"}]).load("train")[0].prompt
        '1+1='
    """
    if isinstance(value, ExampleSource):
        if options:
            raise UserError(f"{', '.join(options)}: give these to {type(value).__name__} itself")
        return value
    if isinstance(value, str | Path):
        return _named(str(value), options)
    if isinstance(value, list | tuple) and value and all(_names_a_file(one) for one in value):
        return FileExamples(train=[str(one) for one in value], **options)
    if _is_by_split(value):
        return as_split_source(_by_split(value, options.pop("split", None)), options)
    if "split" in options:
        raise UserError(f"split: {options['split']}: what is handed over has no splits")
    return as_split_source({"train": value}, options)


def as_split_source(splits: Mapping[Split, object], options: dict[str, Any]) -> ExampleSource:
    """Return one source for several splits.

    Args:
        splits: what is given for each: rows, the path of a file, or examples.
        options: of the columns; none for examples.

    Raises:
        UserError: for examples of some splits alone, and for examples with options.
    """
    listed = {
        split: rows
        for split, rows in splits.items()
        if isinstance(rows, list | tuple) and rows and isinstance(rows[0], Example)
    }
    if listed:
        other = next((one for rows in listed.values() for one in rows if not isinstance(one, Example)), None)
        if other is not None:
            raise UserError(f"Examples and a {type(other).__name__} are in one list: hand over one kind")
        if options or len(listed) < len(splits):
            raise UserError("Examples are made already: give them for every split, and no options for columns")
        return ListedExamples(listed)
    named = {split: str(rows) for split, rows in splits.items() if isinstance(rows, str | Path)}
    if named and len(named) == len(splits):
        return FileExamples(**{**named, **options})  # type: ignore[misc]
    given: dict[str, Any] = {str(split): rows for split, rows in splits.items()}
    return TableExamples(**(given | options))


def _is_by_split(value: object) -> TypeGuard[Mapping[str, object]]:
    """Whether a value is a dict by split, not one by column."""
    if not (isinstance(value, Mapping) and value and all(isinstance(key, str) for key in value)):
        return False
    known = {name for names in SPLIT_NAMES.values() for name in names}
    return bool(known.intersection(value)) or not any(plain(key) in TELLING for key in value)


def _names_a_file(value: object) -> bool:
    """Whether a value of a list is the path of a data file, by its ending, rather than a prompt."""
    return isinstance(value, Path) or (
        isinstance(value, str) and "\n" not in value and kind_of(Path(value)) is not None
    )


def _named(name: str, options: dict[str, Any]) -> ExampleSource:
    """Return the source of a path, or of a dataset on the hub."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        if is_saved(folder):
            return DatasetExamples(name, **options)
        found: dict[str, str] = dict.fromkeys(splits_in(folder), name)
        return FileExamples(**{**(found or {"train": name}), **options})
    if folder.exists() or not _is_hub_name(name):
        return FileExamples(train=name, **options)
    path, _, configuration = name.partition(":")
    return DatasetExamples(path, configuration or None, **options)


def _is_hub_name(name: str) -> bool:
    """Whether a name that is no path can be that of a dataset on the hub: ``owner/name``, perhaps with a configuration."""
    path, _, _ = name.partition(":")
    owner, _, own = path.partition("/")
    words = [word.replace("-", "").replace("_", "").replace(".", "") for word in (owner, own)]
    ending = own.rpartition(".")[2].lower()
    return all(word.isalnum() for word in words) and ending not in (
        "jsonl",
        "json",
        "csv",
        "tsv",
        "parquet",
        "gz",
        "ndjson",
        "txt",
    )


def _by_split(value: Mapping[str, object], called: str | None) -> dict[Split, object]:
    """Return what a dict holds by split.

    Args:
        value: tables, or their paths, by the names of splits.
        called: the name of the one to train on; found by its name, or the only one, if None.

    Raises:
        UserError: if there is no such split, or none to train on and several whose names say nothing.
    """
    if called is not None and called not in value:
        raise UserError(f"there is no split {called!r}; there are {', '.join(value)}")
    found: dict[Split, object] = {}
    for split, names in SPLIT_NAMES.items():
        name = next((name for name in names if name in value), None)
        if name is not None:
            found[split] = value[name]
    known = {name for names in SPLIT_NAMES.values() for name in names}
    if called is None and "train" not in found and not known.issuperset(value):
        called = the_one(list(value), "what is handed over")
    return found if called is None else {**found, "train": value[called]}


def as_table(rows: object, name: str) -> Table:
    """Return a table of what someone handed over.

    Args:
        rows: see `TableExamples`.
        name: what messages call it.

    Raises:
        UserError: if it is no table.
    """
    # Whoever hands over a value of a library has imported it.
    datasets, pandas = sys.modules.get("datasets"), sys.modules.get("pandas")
    if datasets is not None and isinstance(rows, datasets.Dataset | datasets.IterableDataset):
        return Table(name, lambda problems: dataset_rows(rows, name), sparse=True)
    if pandas is not None and isinstance(rows, pandas.DataFrame):
        import pyarrow

        frame = pyarrow.Table.from_pandas(rows, preserve_index=False).to_pylist()
        return replace(as_table(frame, name), sparse=True)
    if isinstance(rows, Sequence) and not isinstance(
        rows, str | bytes | list | tuple
    ):  # such as one column of a data set
        rows = list(rows)
    if isinstance(rows, list | tuple) and rows and isinstance(rows[0], str):
        rows = [{"prompt": prompt} for prompt in rows]
    if isinstance(rows, Mapping) and all(isinstance(values, list | tuple) for values in rows.values()):
        if len(set(map(len, rows.values()))) > 1:
            raise UserError(
                f"{name}: columns of different lengths: {', '.join(f'{key} {len(rows[key])}' for key in rows)}"
            )
        rows = [dict(zip(rows, row, strict=True)) for row in zip(*rows.values(), strict=True)]
    if isinstance(rows, list | tuple) and rows and isinstance(rows[0], list) and is_conversation(rows[0]):
        rows = [{"messages": turns} for turns in rows]
    if not isinstance(rows, list | tuple):
        raise UserError(f"{name} are of type {type(rows).__name__}; what is taken: {_TAKEN}")

    def numbered(problems: Problems) -> Iterator[tuple[str, Row]]:
        for number, row in enumerate(rows):
            if isinstance(row, Mapping) and all(isinstance(column, str) for column in row):
                yield f"{name}[{number}]", dict(row)
            elif isinstance(row, Mapping):
                problems.add(
                    f"{name}[{number}]", f"a dict whose keys are no names of columns: {str(dict(row))[:60]}", "no row"
                )
            else:
                problems.add(f"{name}[{number}]", f"not a dict but of type {type(row).__name__}", "not a dict")

    return Table(name, numbered)

"""Examples from files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rl_lightning.data.sources.base import Split
from rl_lightning.data.sources.containers import file_rows, is_sparse
from rl_lightning.data.sources.head import Row
from rl_lightning.data.sources.hub import is_saved, saved_table
from rl_lightning.data.sources.paths import data_files
from rl_lightning.data.sources.problems import Problems
from rl_lightning.data.sources.share import Share
from rl_lightning.data.sources.tables import Table, TableSource
from rl_lightning.errors import UserError


class FileExamples(TableSource):
    """Examples from files: JSON lines (``.jsonl``, ``.json``), a JSON array (``.json``), ``.csv``, ``.tsv``, all also ``.gz``, or ``.parquet``.

    What the rows hold is recognised from their columns: docs/reference/data.md lists the shapes. A column that an option names is read as
    the option says.

    A row without a prompt, an answer or a response in the column for it is an error, and so is one that is null, empty or of the
    wrong type; all such rows are reported at once. Blank lines are skipped. An answer may be a number: 42 becomes "42".

    Args:
        train: path of the training file; or a pattern such as ``shards/*.jsonl``, a folder of files, or a list of such names. Of a
            folder whose files are called after splits, such as ``train-00000-of-00002.parquet``, those of the split are read.
        val: that of the validation data; or the share of the training rows to hold out, such as 0.02, or their number; there is
            no validation if null.
        test: that of the test data; the validation data if null.
        split: which split of `train` to train on, such as ``train_prefs``, where that is a data set whose splits have other names
            than ``train``.
        **column_options: prompt_column and so on, for columns that are not recognised, and limit: see `TableSource`.

    Raises:
        UserError: if no path is given or ``limit`` is not positive.
    """

    def __init__(
        self,
        train: str | list[str] | None = None,
        val: int | float | str | list[str] | None = None,
        test: str | list[str] | None = None,
        split: str | None = None,
        **column_options: Any,
    ) -> None:
        share = Share.of(val)
        if not any((train, val, test)):
            raise UserError("FileExamples: give at least one of train, val and test")
        if share is not None and not train:
            raise UserError(f"FileExamples: val: {val} is a share of the training rows, and train is not set")
        super().__init__(share, **column_options)
        self.split = split
        self.splits: dict[Split, Any] = {"train": train, "val": None if share else val, "test": test}

    def table(self, split: Split) -> Table | None:
        """Return the rows of a split; None if no files are named for it."""
        where = self.splits[split]
        called = self.split if split == "train" else None
        if not where:
            return None
        if isinstance(where, str) and is_saved(Path(where).expanduser()):
            return saved_table(where, split, called)
        files = data_files(where, split, "FileExamples", called)
        name = where if isinstance(where, str) else ", ".join(where)
        # A name that was given is said as it was given.
        names = [name] if [Path(name).expanduser()] == files else [str(path) for path in files]

        def rows(problems: Problems) -> Iterator[tuple[str, Row]]:
            for path, called in zip(files, names, strict=True):
                yield from file_rows(path, called, problems)

        return Table(name, rows, any(map(is_sparse, files)))

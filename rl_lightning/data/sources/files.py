"""Examples from JSONL and Parquet files."""

from __future__ import annotations

import difflib
import gzip
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from rl_lightning.data.sources.columns import Columns, ColumnSource, Row
from rl_lightning.data.sources.problems import Problems
from rl_lightning.errors import UserError

_JSON_LINES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")


class FileExamples(ColumnSource):
    """Examples from JSONL files (one JSON object a line; ``.jsonl``, ``.json``, also ``.gz``) or ``.parquet`` files.

    A row without a prompt, an answer or a response where a column is named for it is an error, and so is one that is
    null, empty or of the wrong type; all such rows are reported at once. Blank lines are skipped. An answer may be a
    number: 42 becomes "42".

    Args:
        train: path of the training file.
        val: path of the validation file.
        test: path of the test file; the validation file if null.
        prompt_column: holds text, or chat messages ``[{"role": ..., "content": ...}]``.
        answer_column: holds the gold answer; null if there is none.
        response_column: holds an answer that someone wrote: a demonstration, one to be scored, or the chosen one of a pair;
            null if there is none.
        metadata_columns: columns that rewards may want; all the other columns if null, none if empty.
        rejected_column: holds a worse answer to the same prompt than `response_column`; null if there is none.
        margin_column: holds a number, how much better the chosen answer is in units of reward; null if there is none.
        limit: read only this many rows of each file.

    Raises:
        UserError: if no path is given or ``limit`` is not positive.
    """

    def __init__(
        self,
        train: str | None = None,
        val: str | None = None,
        test: str | None = None,
        prompt_column: str = "prompt",
        answer_column: str | None = "answer",
        response_column: str | None = None,
        metadata_columns: list[str] | None = None,
        rejected_column: str | None = None,
        margin_column: str | None = None,
        limit: int | None = None,
    ) -> None:
        columns = Columns(
            prompt_column, answer_column, response_column, metadata_columns, rejected_column, margin_column
        )
        super().__init__({"train": train, "val": val, "test": test}, columns, limit)

    def _name(self, where: str) -> str:
        return where

    def _rows(self, where: str, problems: Problems) -> Iterator[tuple[str, Row]]:
        path = Path(where).expanduser()
        try:
            if path.is_dir():
                raise UserError(f"FileExamples: {where} is a directory; name a file in it, or use DatasetExamples")
            if not path.exists():
                raise UserError(f"FileExamples: there is no file {where}{near_misses(path)}")
        except OSError as error:  # a folder on the way may be out of bounds
            raise UserError(f"FileExamples: {where} cannot be read: {error.strerror}") from error
        if path.name.lower().endswith(_JSON_LINES):
            return _json_rows(path, where, problems)
        if path.suffix.lower() == ".parquet":
            return _parquet_rows(path, where)
        raise UserError(f"FileExamples: {where} is no {', '.join(_JSON_LINES)} or .parquet file")


def near_misses(path: Path) -> str:
    """Return the end of a sentence that says what there is instead of a path that does not exist.

    Args:
        path: what was asked for.

    Returns:
        The names most like it in its folder, or that there is no such folder; empty if nothing is like it.
    """
    if not path.parent.is_dir():
        return f": there is no folder {path.parent}"
    if not os.access(path.parent, os.R_OK):
        return f", or it cannot be seen: there is no permission to list the folder {path.parent}"
    close = difflib.get_close_matches(path.name, sorted(entry.name for entry in path.parent.iterdir()), cutoff=0.5)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _json_rows(path: Path, where: str, problems: Problems) -> Iterator[tuple[str, Row]]:
    """Yield the objects of a file of JSON lines."""
    try:
        with _open(path) as file:
            for number, line in enumerate(file, start=1):
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                    _refuse_array(line, where)
                if not line.strip():
                    continue
                location = f"{where}:{number}"
                row = _parse(line, location, problems)
                if row is not None:
                    yield location, row
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"FileExamples: {where} cannot be read: {error}") from error


def _open(path: Path) -> IO[bytes]:
    """Open a file that may be compressed; as bytes, so that a line that is no UTF-8 is a bad line, not a bad file."""
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")  # type: ignore[return-value]


def _refuse_array(first_line: bytes, where: str) -> None:
    """Say it once if a file holds one array, rather than call each of its lines invalid."""
    if first_line.lstrip().startswith(b"["):
        raise UserError(f"FileExamples: {where} holds a JSON array; write one object a line instead (JSONL)")


def _parse(line: bytes, location: str, problems: Problems) -> Row | None:
    """Parse a line; None if it is bad, which is noted."""
    try:
        row: Any = json.loads(line.decode("utf-8"), parse_int=_integer)
    except UnicodeDecodeError:
        problems.add(location, "not UTF-8 text")
        return None
    except json.JSONDecodeError as error:
        problems.add(location, f"invalid JSON: {error.msg} at column {error.colno}", "invalid JSON")
        return None
    except RecursionError:
        problems.add(location, "JSON that is nested too deeply")
        return None
    if not isinstance(row, dict):
        problems.add(location, f"not a JSON object but of type {type(row).__name__}", "not a JSON object")
        return None
    return row


def _integer(digits: str) -> int | str:
    """Return an integer; its text where Python refuses to convert one of so many digits."""
    try:
        return int(digits)
    except ValueError:
        return digits


def _parquet_rows(path: Path, where: str) -> Iterator[tuple[str, Row]]:
    """Yield the rows of a Parquet file, numbered from 1."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UserError("FileExamples: Parquet files need pyarrow: pip install 'rl_lightning[data]'") from error
    try:
        with parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield f"{where}:{number}", row
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise UserError(f"FileExamples: {where} cannot be read: {error}") from error

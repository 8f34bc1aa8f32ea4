"""Rows of files of every kind: JSON lines, JSON arrays, CSV, Parquet."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from rl_lightning.data.sources.json_files import json_rows
from rl_lightning.data.sources.problems import Problems
from rl_lightning.errors import UserError

Row = dict[str, object]
Rows = Iterator[tuple[str, Row]]

_PARQUET = ".parquet"
#: A field of a CSV file may be this long, in characters: a book.
_LONGEST_FIELD = 2**31 - 1


def file_rows(path: Path, where: str, problems: Problems) -> Rows:
    """Yield the rows of a file with their locations: the line for text, the number of the row for Parquet, from 1.

    Args:
        path: of the file.
        where: what messages call it.
        problems: where rows that cannot be read are noted.

    Raises:
        UserError: if the file cannot be read, or is of another kind.
    """
    kind = kind_of(path)
    if kind is None:
        raise UserError(f"{where} is no {', '.join([*_TEXT, _PARQUET])} file (text ones also .gz)")
    if kind == _PARQUET:
        yield from _parquet_rows(path, where)
        return
    try:
        with _open(path) as file:
            start = file.peek(4)[:4]
            if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)) or b"\0" in start:
                raise UserError(f"{where} is UTF-16 or UTF-32 text, or no text at all: save it as UTF-8")
            yield from _TEXT[kind](file, where, problems)
    except (OSError, EOFError, zlib.error, csv.Error) as error:
        raise UserError(f"{where} cannot be read: {error}") from error


def kind_of(path: Path) -> str | None:
    """Return the ending that says how a file is to be read; None if it cannot be read."""
    name = path.name.lower()
    if name.endswith(_PARQUET):
        return _PARQUET
    ending = Path(name.removesuffix(".gz")).suffix
    return ending if ending in _TEXT else None


def is_sparse(path: Path) -> bool:
    """Whether every dict in a file has every key that any dict of its column has."""
    return kind_of(path) == _PARQUET


def _open(path: Path) -> io.BufferedReader:
    """Open a file that may be compressed, as bytes."""
    return io.BufferedReader(gzip.open(path, "rb")) if path.suffix.lower() == ".gz" else path.open("rb")


def _csv_rows(file: IO[bytes], where: str, problems: Problems) -> Rows:
    """Yield the rows of a CSV file; what separates its fields is what its header has: a comma, a semicolon or a tab."""
    csv.field_size_limit(_LONGEST_FIELD)
    lines = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    try:
        header, before = lines.readline(), 1
        while header and header.isspace():
            header, before = lines.readline(), before + 1
        separator = max(",;\t", key=header.count)
        columns = next(csv.reader([header], delimiter=separator), [])
        if len(set(columns)) < len(columns):
            raise UserError(f"{where}: two columns of its first line have the same name: {', '.join(columns)}")
        reader = csv.reader(lines, delimiter=separator)
        line = before + 1
        for fields in reader:
            location, line = f"{where}:{line}", before + reader.line_num + 1
            if len(fields) == len(columns):
                yield location, dict(zip(columns, fields, strict=True))
            elif fields:
                problems.add(
                    location,
                    f"has {len(fields)} fields, and the header {len(columns)}",
                    "not as many fields as the header",
                )
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text: save it as UTF-8") from error


_TEXT: dict[str, Callable[[IO[bytes], str, Problems], Rows]] = {
    ".jsonl": json_rows,
    ".json": json_rows,
    ".ndjson": json_rows,
    ".csv": _csv_rows,
    ".tsv": _csv_rows,
}


def _parquet_rows(path: Path, where: str) -> Rows:
    """Yield the rows of a Parquet file, numbered from 1."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UserError("Parquet files need pyarrow: pip install 'rl_lightning[data]'") from error
    try:
        with parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{where}:{number}", row
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise UserError(f"{where} cannot be read: {error}") from error

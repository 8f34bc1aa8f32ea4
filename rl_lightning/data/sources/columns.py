"""From rows with named columns to examples: what files and datasets have in common."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from itertools import islice
from math import isfinite
from numbers import Real
from typing import Any

from rl_lightning.data.sources.base import Example, ExampleSource, Gold, Split
from rl_lightning.data.sources.problems import Problems
from rl_lightning.errors import UserError
from rl_lightning.text import has_lone_surrogate

log = logging.getLogger(__name__)

Row = dict[str, Any]


class _BadValue(ValueError):
    """A value that cannot be used.

    Args:
        what: is wrong; it continues "column 'x' ...".
        kind: what to count it as; `what` itself if None.
    """

    def __init__(self, what: str, kind: str | None = None) -> None:
        super().__init__(what)
        self.kind = kind or what


@dataclass(frozen=True)
class Columns:
    """Which column of a row becomes which part of an example.

    Args:
        prompt: holds text or chat messages.
        answer: holds the gold answer: text, a number, a truth value, a dict or a list of alternatives; None if there is none.
        response: holds an answer that someone wrote; None if there is none.
        metadata: columns to pass on to rewards, None where a row lacks one; None to pass on all the other columns.
        rejected: holds a worse answer than the response; None if there is none.
        margin: holds a number, how much better the response is; None if there is none.
    """

    prompt: str
    answer: str | None
    response: str | None
    metadata: list[str] | None
    rejected: str | None = None
    margin: str | None = None

    def __post_init__(self) -> None:
        """Refuse columns that mean nothing without another."""
        for option, column, other, needed in (
            ("rejected_column", self.rejected, "response_column", self.response),
            ("margin_column", self.margin, "rejected_column", self.rejected),
        ):
            if column is not None and needed is None:
                raise UserError(f"{option} is set to {column!r} without {other}: set that too")

    @property
    def options(self) -> dict[str, str]:
        """The columns that every row must have, by the option that names them."""
        options = {"prompt_column": self.prompt, "answer_column": self.answer, "response_column": self.response}
        options |= {"rejected_column": self.rejected, "margin_column": self.margin}
        return {option: column for option, column in options.items() if column is not None}

    def examples(self, name: str, rows: list[tuple[str, Row]], problems: Problems) -> list[Example]:
        """Turn rows into examples.

        Args:
            name: of the file or dataset, for problems of the whole.
            rows: pairs of location and row.
            problems: where bad rows are noted.

        Returns:
            One example for each good row, in order.

        Raises:
            UserError: if no row at all has a column.
        """
        present = dict.fromkeys(column for _, row in rows for column in row)
        absent = Problems()
        named = [*self.options.items(), *(("metadata_columns", column) for column in self.metadata or [])]
        for option, column in named:
            if rows and column not in present:
                hint = (
                    "; set answer_column to null in a YAML file if there are no gold answers (on the command line null is read as text)"
                    if option == "answer_column"
                    else ""
                )
                absent.add(name, f"no column {column!r} ({option}): its columns are {', '.join(present)}{hint}")
        # No row lacks it by mistake, so none can be dropped for it.
        absent.raise_if_any(f"{name} has rows that cannot be used:")
        examples = []
        for location, row in rows:
            before = len(problems)
            for column in self.options.values():
                if column not in row:
                    problems.add(location, f"column {column!r} is missing")
            prompt = self._value(row, self.prompt, location, problems)
            answer = self._value(row, self.answer, location, problems)
            response = self._value(row, self.response, location, problems)
            rejected = self._value(row, self.rejected, location, problems)
            margin = self._value(row, self.margin, location, problems)
            if len(problems) == before:
                examples.append(Example(prompt, answer, response, self._metadata(row), location, rejected, margin))
        return examples

    def _value(self, row: Row, column: str | None, location: str, problems: Problems) -> Any:
        """Read one column of a row; None if it is not wanted, not there, or bad (which is noted)."""
        if column is None or column not in row:
            return None
        readers: dict[str | None, Callable[[Any], Any]] = {
            self.margin: _margin,
            self.answer: _answer,
            self.prompt: _prompt,
        }
        try:
            return readers.get(column, _text)(row[column])
        except _BadValue as bad:
            problems.add(location, f"column {column!r} {bad}", f"column {column!r} {bad.kind}")
            return None

    def _metadata(self, row: Row) -> Row:
        """Pick what is passed on to rewards."""
        if self.metadata is not None:
            return {column: row.get(column) for column in self.metadata}
        used = set(self.options.values())
        return {column: value for column, value in row.items() if column not in used}


class ColumnSource(ExampleSource):
    """A source whose splits are tables.

    Args:
        splits: where each split is; None if it is nowhere.
        columns: what becomes what.
        limit: rows to read of each split, from its beginning; None for all.

    Raises:
        UserError: if ``limit`` is not positive, or no split is given.
    """

    def __init__(self, splits: dict[Split, str | None], columns: Columns, limit: int | None) -> None:
        owner = type(self).__name__
        if limit is not None and limit < 1:
            raise UserError(f"{owner}: limit must be at least 1, not {limit}; null for all rows")
        if not any(splits.values()):
            raise UserError(f"{owner}: give at least one of train, val and test")
        self.splits = splits
        self.columns = columns
        self.limit = limit

    def load(self, split: Split) -> list[Example]:
        """Return the examples of a split, in the order of the table.

        Args:
            split: which; the validation data stand in for a test split that is not given, and a warning says so.

        Raises:
            UserError: if the split is not given or cannot be read, and with every bad row at once.
        """
        problems = Problems()
        examples = self.read(split, problems)
        problems.raise_if_any(f"{self._name(self._where(split))} has rows that cannot be used:")
        return examples

    def read(self, split: Split, problems: Problems) -> list[Example]:
        """Return the examples of a split, in the order of the table, and note rows that make none."""
        where = self._where(split)
        name = self._name(where)
        rows = list(islice(self._rows(where, problems), self.limit))
        if not rows and not len(problems):
            raise UserError(f"{name} is empty: it has no rows")
        return self.columns.examples(name, rows, problems)

    def _where(self, split: Split) -> str:
        """Return where a split is."""
        owner = type(self).__name__
        where = self.splits[split]
        if where is None and split == "test" and self.splits["val"] is not None:
            where = self.splits["val"]
            log.warning("%s: no test data are given; testing on the validation data, %s", owner, where)
        if where is None:
            without = ", or train without validation: --trainer.limit_val_batches=0" if split == "val" else ""
            raise UserError(f"{owner}: the {split} split is asked for, but `{split}` is not set: set it{without}")
        return where

    @abstractmethod
    def _name(self, where: str) -> str:
        """Return what messages call a split."""

    @abstractmethod
    def _rows(self, where: str, problems: Problems) -> Iterator[tuple[str, Row]]:
        """Yield the rows of a split with their locations; note rows that cannot be read in ``problems``."""


def _text(value: Any) -> str:
    """Check that a value is text with something in it."""
    if value is None:
        raise _BadValue("is null")
    if not isinstance(value, str):
        raise _BadValue(f"is of type {type(value).__name__}, not text")
    if not value.strip():
        raise _BadValue("is empty")
    if has_lone_surrogate(value):
        raise _BadValue("holds half of a surrogate pair, which is no character")
    return value


def _answer(value: Any) -> Gold:
    """Check that there is a gold answer; a number becomes the text of that number. What it says is for the rewards to read."""
    if isinstance(value, bool):
        return value
    if isinstance(value, Real | Decimal) and isfinite(value):
        return str(value)
    if isinstance(value, dict | list):
        if not value:
            raise _BadValue("is empty")
        return value
    return _text(value)


def _margin(value: Any) -> float:
    """Check how much better a response is."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not isfinite(value):
        raise _BadValue("is no finite number")
    if value < 0:
        raise _BadValue(f"is {value}: the response must be the better one, the rejected one the worse", "is below 0")
    return float(value)


def _prompt(value: Any) -> str | list[dict[str, str]]:
    """Check a prompt: text, or chat messages of which the last is not the policy's own."""
    if not isinstance(value, list):
        return _text(value)
    if not value:
        raise _BadValue("is empty")
    messages = []
    for number, message in enumerate(value, start=1):
        if not isinstance(message, dict):
            raise _BadValue(
                f"has a message {number} of type {type(message).__name__}, not one with role and content",
                "has something that is no message",
            )
        # Parquet gives every message every key that any message has.
        message = {key: text for key, text in message.items() if text is not None}
        for key in ("role", "content"):
            if not str(message.get(key, "")).strip():
                raise _BadValue(f"has a message {number} without {key}", f"has a message without {key}")
        for key, text in message.items():
            if not isinstance(text, str):
                raise _BadValue(
                    f"has a message {number} whose {key} is of type {type(text).__name__}, not text",
                    f"has a message whose {key} is no text",
                )
            if has_lone_surrogate(text):
                raise _BadValue(
                    f"has a message {number} whose {key} holds half of a surrogate pair, which is no character",
                    "has a message with half of a surrogate pair",
                )
        messages.append(message)
    if messages[-1]["role"] == "assistant":
        raise _BadValue("ends with a message of the assistant: leave the turn to be sampled out of the prompt")
    return messages

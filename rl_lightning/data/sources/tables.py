"""Sources whose splits are tables of rows."""

from __future__ import annotations

import gc
import logging
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from typing import ClassVar

from rl_lightning.data.sources.base import Example, ExampleSource, Split
from rl_lightning.data.sources.head import Row
from rl_lightning.data.sources.layout import Columns, Layout
from rl_lightning.data.sources.problems import Problems
from rl_lightning.data.sources.reading import RowReader
from rl_lightning.data.sources.recognise import recognise
from rl_lightning.data.sources.shape import Shape
from rl_lightning.data.sources.share import Share
from rl_lightning.errors import UserError

log = logging.getLogger(__name__)

#: Rows that are looked at to tell what a table holds.
_LOOKED_AT = 64


@dataclass(frozen=True)
class Table:
    """Rows with locations.

    Args:
        name: what messages call it.
        rows: yields (location, row) from the beginning, and notes rows that cannot be read.
        sparse: every dict in a row has every key that any dict of its column has, as Arrow stores them.
    """

    name: str
    rows: Callable[[Problems], Iterator[tuple[str, Row]]]
    sparse: bool = False


class TableSource(ExampleSource):
    """A source whose splits are tables. What their rows hold is recognised, unless options name the columns.

    Args:
        share: of the training rows is held out as the validation split; None if that is a table of its own, or there is none.
        prompt_column: holds text, or chat messages ``[{"role": ..., "content": ...}]``.
        answer_column: holds the gold answer.
        response_column: holds an answer that someone wrote: a demonstration, one to be scored, or the chosen one of a pair.
        metadata_columns: columns that rewards may want; all the other columns if null, none if empty.
        rejected_column: holds a worse answer to the same prompt than `response_column`.
        margin_column: holds a number, how much better the chosen answer is in units of reward.
        label_column: holds what the response is worth: true, false, or a number.
        messages_column: holds conversations, whose last turn is the assistant's where there is an answer to learn.
        text_column: holds texts to learn whole, without a chat template.
        max_new_tokens_column: holds for each prompt the longest answer in tokens; that of `sampling` where it is null.
        limit: read only this many rows of each split.

    Attributes:
        advice: how a split is set, for messages.

    Raises:
        UserError: if ``limit`` is not positive, or columns are named that contradict each other.
    """

    advice: ClassVar[str] = "set it"

    def __init__(
        self,
        share: Share | None = None,
        /,
        prompt_column: str | None = None,
        answer_column: str | None = None,
        response_column: str | None = None,
        metadata_columns: list[str] | None = None,
        rejected_column: str | None = None,
        margin_column: str | None = None,
        label_column: str | None = None,
        messages_column: str | None = None,
        text_column: str | None = None,
        max_new_tokens_column: str | None = None,
        limit: int | None = None,
    ) -> None:
        if limit is not None and limit < 1:
            raise UserError(f"{type(self).__name__}: limit must be at least 1, not {limit}; null for all rows")
        self.columns = Columns(
            prompt=prompt_column,
            answer=answer_column,
            response=response_column,
            rejected=rejected_column,
            margin=margin_column,
            label=label_column,
            messages=messages_column,
            text=text_column,
            new_tokens=max_new_tokens_column,
            metadata=metadata_columns,
        )
        self.limit = limit
        self.share = share
        self._layouts: dict[Split, Layout] = {}
        #: What the share holds out, from when the training rows were read until it is asked for.
        self._held_out: list[Example] | None = None

    @abstractmethod
    def table(self, split: Split) -> Table | None:
        """Return the rows of a split; None if it has none of its own.

        Raises:
            UserError: if it cannot be found.
        """

    def has(self, split: Split) -> bool:
        """Tell whether there is a split; validation data stand in for a test split that is not given."""
        own = (self.share is not None) if split == "val" and self.share is not None else self.table(split) is not None
        return own or (split == "test" and self.has("val"))

    def load(self, split: Split) -> list[Example]:
        """Return the examples of a split, in the order of the table.

        Args:
            split: which; the validation data stand in for a test split that is not given, and a warning says so.

        Raises:
            UserError: if the split is not given or cannot be read, and with every bad row at once.
        """
        problems = Problems()
        examples = self.read(split, problems)
        if len(problems):
            where = self._read_as(split)
            right = f"; a right one is {self._layouts[where].right_row()}" if where in self._layouts else ""
            problems.raise_if_any(f"{self._table(where).name} has rows that cannot be used{right}:")
        return examples

    def read(self, split: Split, problems: Problems) -> list[Example]:
        """Return the examples of a split, in the order of the table, and note rows that make none."""
        where = self._read_as(split)
        if split != "train" and where == "train" and self._held_out is not None:
            examples, self._held_out = self._held_out, None
            return examples
        with _without_collecting():
            return self._read(where, split, problems)

    def _read(self, where: Split, split: Split, problems: Problems) -> list[Example]:
        table = self._table(where)
        # A share is of the training rows, and their problems are theirs.
        rows = islice(table.rows(problems if where == split else Problems()), self.limit)
        head = list(islice(rows, _LOOKED_AT))
        if not head:
            if not len(problems):
                raise UserError(f"{table.name} is empty: it has no rows")
            return []
        layout = self._layout(where, table, head)
        reader = RowReader(layout, table.sparse)
        examples = reader.examples(table.name, chain(head, rows), problems if split == where else Problems())
        if where != "train" or self.share is None or not examples:
            return examples
        kept, held_out = self.share.split(examples)
        if split != "train":
            return held_out
        self._held_out = held_out
        return kept

    def shape(self, split: Split) -> Shape | None:
        """Return what the rows of a split hold, by the first of them; None if there are none that can be read."""
        where = self._read_as(split)
        if where not in self._layouts:
            table = self._table(where)
            rows = table.rows(Problems())
            head = list(islice(rows, _LOOKED_AT))
            if not head:
                return None
            self._layout(where, table, head)
        return self._layouts[where].shape

    def _layout(self, where: Split, table: Table, head: list[tuple[str, Row]]) -> Layout:
        if where not in self._layouts:
            self._layouts[where] = recognise(table.name, [row for _, row in head], self.columns)
        return self._layouts[where]

    def _read_as(self, split: Split) -> Split:
        """Return the split whose table is read for one: another one's where it has none of its own.

        Raises:
            UserError: if there is none.
        """
        if split == "val" and self.share is not None:
            return "train"
        if self.table(split) is not None:
            return split
        owner = type(self).__name__
        if split == "test" and self.has("val"):
            log.warning("%s: no test data are given; testing on the validation data", owner)
            return self._read_as("val")
        without = "; a share of the training data will do, such as val: 0.02" if split == "val" else ""
        raise UserError(
            f"{owner}: the {split} split is asked for, but `{split}` is not set: {self.advice.format(split)}{without}"
        )

    def _table(self, split: Split) -> Table:
        table = self.table(split)
        assert table is not None
        return table


@contextmanager
def _without_collecting() -> Iterator[None]:
    """Do not look for garbage inside this: rows are no cycles, and Python would look through all of them again and again."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()

"""Examples from a dataset on the hub, or from a local dataset directory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rl_lightning.data.sources.columns import Columns, ColumnSource, Row
from rl_lightning.data.sources.files import near_misses
from rl_lightning.data.sources.problems import Problems
from rl_lightning.errors import UserError


class DatasetExamples(ColumnSource):
    """Examples from a dataset that the ``datasets`` library can load.

    Rows are checked as those of `FileExamples` are.

    Args:
        path: name on the hub such as ``openai/gsm8k``, a local directory of data files, or one written by
            ``save_to_disk``.
        name: which configuration of the dataset, such as ``main``.
        train: what the dataset calls its training split. A part of one, such as ``train[:95%]``, will do for each
            of the three, except with ``save_to_disk``.
        val: what it calls its validation split; null if it has none.
        test: what it calls its test split; the validation split if null.
        prompt_column: holds text, or chat messages ``[{"role": ..., "content": ...}]``.
        answer_column: holds the gold answer; null if there is none.
        response_column: holds an answer that someone wrote: a demonstration, one to be scored, or the chosen one of a pair;
            null if there is none.
        metadata_columns: columns that rewards may want; all the other columns if null, none if empty.
        rejected_column: holds a worse answer to the same prompt than `response_column`; null if there is none.
        margin_column: holds a number, how much better the chosen answer is in units of reward; null if there is none.
        limit: read only this many rows of each split.

    Raises:
        UserError: if no split is given or ``limit`` is not positive.
    """

    def __init__(
        self,
        path: str,
        name: str | None = None,
        train: str | None = "train",
        val: str | None = "validation",
        test: str | None = "test",
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
        self.path = path
        self.name = name

    def _name(self, where: str) -> str:
        return f"{self.path}[{where}]"

    def _rows(self, where: str, problems: Problems) -> Iterator[tuple[str, Row]]:
        name = self._name(where)
        for number, row in enumerate(self._dataset(where), start=1):
            yield f"{name}:{number}", row

    def _dataset(self, where: str) -> Any:
        """Load a split."""
        try:
            import datasets
        except ImportError as error:
            raise UserError("DatasetExamples needs datasets: pip install 'rl_lightning[data]'") from error
        local = Path(self.path).expanduser()
        try:
            if not local.exists() and (local.is_absolute() or self.path.startswith((".", "~"))):
                raise UserError(f"DatasetExamples: there is no directory {self.path}{near_misses(local)}")
            path = str(local) if local.exists() else self.path
            if (local / "dataset_dict.json").is_file() or (local / "state.json").is_file():
                return self._saved(datasets.load_from_disk(path), where)
            return datasets.load_dataset(path, self.name, split=where)
        # What the library raises for a name, a split or a connection that is not there has no narrower common ground.
        except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"DatasetExamples: {self._name(where)} cannot be loaded: {reason}") from error

    def _saved(self, saved: Any, where: str) -> Any:
        """Pick a split of what ``save_to_disk`` wrote."""
        if self.name is not None:
            raise UserError(f"DatasetExamples: {self.path} was saved to disk and has no configuration {self.name!r}")
        if not isinstance(saved, dict):
            raise UserError(f"DatasetExamples: {self.path} holds a dataset without splits; save a DatasetDict")
        if where not in saved:
            raise UserError(f"DatasetExamples: {self.path} has no split {where!r}; it has {', '.join(saved)}")
        return saved[where]

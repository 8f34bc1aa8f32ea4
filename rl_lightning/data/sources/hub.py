"""Examples from a dataset on the hub, or from a local dataset directory."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from rl_lightning.data.sources.base import Split
from rl_lightning.data.sources.head import Row
from rl_lightning.data.sources.paths import SPLIT_NAMES, near_misses
from rl_lightning.data.sources.problems import Problems
from rl_lightning.data.sources.share import Share
from rl_lightning.data.sources.tables import Table, TableSource
from rl_lightning.errors import UserError

T = TypeVar("T")

#: Rows that are read at a time.
_AT_A_TIME = 1000


class DatasetExamples(TableSource):
    """Examples from a dataset that the ``datasets`` library can load.

    Rows are recognised and checked as those of `FileExamples` are.

    Args:
        path: name on the hub such as ``openai/gsm8k``, a local directory of data files, or one written by
            ``save_to_disk``.
        name: which configuration of the dataset, such as ``main``.
        train: what the dataset calls its training split. A part of one, such as ``train[:95%]``, will do for each of the three.
            ``train`` if null, or the only one that it has.
        val: what it calls its validation split; or the share of the training rows to hold out, such as 0.02, or their number;
            ``validation``, ``val``, ``dev`` or the like if null and it has one, else there is no validation.
        test: what it calls its test split; ``test`` if null and it has one, else the validation data.
        split: another name for the option `train`, as ``datasets.load_dataset`` calls it.
        **column_options: prompt_column and so on, for columns that are not recognised, and limit: see `TableSource`.

    Raises:
        UserError: if ``limit`` is not positive, or `train` and `split` are given.
    """

    def __init__(
        self,
        path: str,
        name: str | None = None,
        train: str | None = None,
        val: int | float | str | None = None,
        test: str | None = None,
        split: str | None = None,
        **column_options: Any,
    ) -> None:
        if train is not None and split is not None:
            raise UserError(f"DatasetExamples: train: {train} and split: {split} mean the same: leave one out")
        share = Share.of(val)
        super().__init__(share, **column_options)
        self.splits: dict[Split, str | None] = {
            "train": train or split,
            "val": val if share is None and isinstance(val, str) else None,
            "test": test,
        }
        self.path = path
        self.name = name
        self._loaded: dict[str, Any] = {}

    def table(self, split: Split) -> Table | None:
        """Return the rows of a split; None if the dataset has none that is called so."""
        where = self.splits[split]
        if where is None:
            where = self._found(split)
        if where is None:
            return None
        name = f"{self.path}[{where}]"

        def rows(problems: Problems) -> Iterator[tuple[str, Row]]:
            if where not in self._loaded:
                self._loaded[where] = self._load(where)
            return dataset_rows(self._loaded[where], name)

        return Table(name, rows, sparse=True)

    def _found(self, split: Split) -> str | None:
        """Return what the dataset calls a split that no option names; None if it has none that is called so.

        Raises:
            UserError: if none of several is called a training split.
        """
        found = next((name for name in SPLIT_NAMES[split] if name in self.names), None)
        return found if split != "train" else found or the_one(self.names, self.path)

    @cached_property
    def _local(self) -> Path | None:
        """The directory of the dataset; None if it is one on the hub."""
        local = Path(self.path).expanduser()
        if not local.exists() and (local.is_absolute() or self.path.startswith((".", "~"))):
            raise UserError(f"DatasetExamples: there is no directory {self.path}{near_misses(local)}")
        return local if local.exists() else None

    @cached_property
    def _saved(self) -> Any:
        """What ``save_to_disk`` wrote; None if the directory is none of its."""
        local = self._local
        if local is None or not is_saved(local):
            return None
        if self.name is not None:
            raise UserError(f"DatasetExamples: {self.path} was saved to disk and has no configuration {self.name!r}")
        return self._asked("it", lambda datasets: datasets.load_from_disk(str(local)))

    @cached_property
    def names(self) -> list[str]:
        """What the dataset calls its splits."""
        if self._saved is not None:
            return list(self._saved) if isinstance(self._saved, dict) else ["train"]
        path = str(self._local or self.path)
        return list(self._asked("it", lambda datasets: datasets.get_dataset_split_names(path, self.name)))

    @property
    def has_splits(self) -> bool:
        """Whether the dataset has named splits; one that was saved alone has none."""
        return self._saved is None or isinstance(self._saved, dict)

    def _load(self, where: str) -> Any:
        """Load a split, or a part of it."""
        if self._saved is None:
            path = str(self._local or self.path)
            return self._asked(f"[{where}]", lambda datasets: datasets.load_dataset(path, self.name, split=where))
        whole = self._saved if isinstance(self._saved, dict) else {"train": self._saved}
        unknown = [part for part in re.findall(r"(?:^|\+)\s*(\w+)", where) if part not in whole]
        if unknown:
            raise UserError(f"DatasetExamples: {self.path} has no split {unknown[0]!r}; it has {', '.join(whole)}")
        return self._asked(f"[{where}]", lambda datasets: _part(datasets, whole, where))

    def _asked(self, what: str, ask: Callable[[Any], T]) -> T:
        """Return what the library says.

        Raises:
            UserError: if it is not installed, or for what it raises.
        """
        try:
            import datasets
        except ImportError as error:
            raise UserError("DatasetExamples needs datasets: pip install 'rl_lightning[data]'") from error
        try:
            return ask(datasets)
        # What the library raises for a name, a split or a connection that is not there has no narrower common ground.
        except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
            reason = " ".join(str(error).split())
            name = self.path if what == "it" else f"{self.path}{what}"
            raise UserError(f"DatasetExamples: {name} cannot be loaded: {reason}") from error


def is_saved(folder: Path) -> bool:
    """Whether a folder was written by ``save_to_disk``."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def the_one(names: Collection[str], where: str) -> str:
    """Return the split to train on where none is called so: the only one that there is.

    Raises:
        UserError: naming the splits, if there are several.
    """
    if len(names) == 1:
        return next(iter(names))
    likely = next((name for name in names if name.startswith("train")), next(iter(names), "train"))
    raise UserError(f"{where} has the splits {', '.join(names)}: choose the one to train on, such as split: {likely}")


def saved_table(folder: str, split: Split, called: str | None = None) -> Table:
    """Return the rows that ``save_to_disk`` wrote to a folder: those of a split, or of a dataset without splits all.

    Args:
        folder: that was written.
        split: to return.
        called: what the dataset calls its training split; found by its name if None.

    Raises:
        UserError: if there is no such split.
    """
    source = DatasetExamples(folder, train=called)
    found = source.table(split if source.has_splits else "train")
    if found is None:
        raise UserError(f"{folder} has no split for {split}; it has {', '.join(source.names)}")
    return found


def dataset_rows(dataset: Any, name: str) -> Iterator[tuple[str, Row]]:
    """Yield the rows of a ``datasets.Dataset``, numbered from 1."""
    number = 0
    for batch in dataset.with_format(None).iter(batch_size=_AT_A_TIME):
        for values in zip(*batch.values(), strict=True):
            number += 1
            yield f"{name}:{number}", dict(zip(batch, values, strict=True))


def _part(datasets: Any, whole: Any, where: str) -> Any:
    """Return what a name such as ``train[:95%]`` means of a dict of datasets."""
    instruction = datasets.ReadInstruction.from_spec(where)
    parts = instruction.to_absolute({name: len(split) for name, split in whole.items()})
    return datasets.concatenate_datasets([whole[part.splitname].select(range(part.from_, part.to)) for part in parts])

"""Which files a name means: a file, a pattern, a folder of shards, or several of them."""

from __future__ import annotations

import difflib
import glob
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from rl_lightning.data.sources.base import Split
from rl_lightning.data.sources.containers import kind_of
from rl_lightning.errors import UserError

#: What files and folders of a split are called.
SPLIT_NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("validation", "val", "valid", "dev", "eval"),
    "test": ("test", "testing"),
}
_SPLIT_OF: dict[str, Split] = {name: split for split, names in SPLIT_NAMES.items() for name in names}
#: Files that describe a data set and hold none of it.
_ABOUT = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}


def data_files(where: str | Sequence[str], split: Split, owner: str, called: str | None = None) -> list[Path]:
    """Return the files that a name means, in the order of their names.

    Args:
        where: a file, a pattern such as ``data/*.jsonl``, a folder, or a list of such names. Of a folder with files of several
            splits, such as ``train-00000-of-00002.parquet``, those of `split` are taken.
        split: that is read.
        owner: what messages begin with.
        called: what the names of the files call the split, such as ``train_prefs``, where that is not its own name.

    Raises:
        UserError: if there is no such file.
    """
    names = [where] if isinstance(where, str) else list(where)
    return list(dict.fromkeys(path for name in names for path in _files(name, split, owner, called)))


def _files(name: str, split: Split, owner: str, called: str | None) -> list[Path]:
    path = Path(name).expanduser()
    try:
        if path.is_dir():
            return _folder_files(path, split, owner, called)
        if path.exists():
            return [path]
        if glob.has_magic(name):
            found = [Path(one) for one in sorted(glob.glob(str(path), recursive=True))]
            files = [one for one in found if one.is_file()]
            if not files:
                raise UserError(f"{owner}: no file fits {name}")
            return files
        raise UserError(f"{owner}: there is no file {name}{near_misses(path)}")
    except OSError as error:  # a folder on the way may be out of bounds
        raise UserError(f"{owner}: {name} cannot be read: {error.strerror}") from error


def _folder_files(folder: Path, split: Split, owner: str, called: str | None) -> list[Path]:
    """Return the data files in a folder and in the folders in it: those of a split, if their names say so."""
    files = [path for path in sorted(folder.rglob("*")) if kind_of(path) and path.name not in _ABOUT and path.is_file()]
    if not files:
        raise UserError(f"{owner}: there is no data file in the folder {folder}")
    marked = {path: _split_of(path.relative_to(folder)) for path in files}
    if called is not None:
        files = _called(files, called, folder, owner)
    elif any(marked.values()):
        files = [path for path in files if marked[path] == split]
        if not files:
            there = ", ".join(sorted({found for found in marked.values() if found}))
            raise UserError(f"{owner}: the folder {folder} has files of {there}, but none of {split}")
        own = sorted({_own_name(path) for path in files})
        if len(own) > 1 and all(re.match(rf"({'|'.join(SPLIT_NAMES[split])})_", name) for name in own):
            raise UserError(
                f"{owner}: the folder {folder} has the splits {', '.join(own)}: choose the one to read, such as split: {own[0]}"
            )
    kinds = sorted({str(kind_of(path)) for path in files})
    if len(kinds) > 1:
        raise UserError(
            f"{owner}: the folder {folder} has {' and '.join(kinds)} files; name those to read, such as {folder}/*{kinds[0]}"
        )
    return files


def _called(files: Sequence[Path], called: str, folder: Path, owner: str) -> list[Path]:
    """Return the files that are called after a split."""
    found = [path for path in files if called in (_own_name(path), path.parent.name)]
    if not found:
        there = ", ".join(sorted({_own_name(path) for path in files}))
        raise UserError(f"{owner}: the folder {folder} has no files of a split {called!r}; it has {there}")
    return found


def _own_name(path: Path) -> str:
    """Return what a file is called but for the number of a shard: ``train_prefs`` of ``train_prefs-00000-of-00002.parquet``."""
    return re.sub(r"([-_.]*(of|part|shard)?[-_.]*\d+)+$", "", path.name.partition(".")[0])


def _split_of(path: Path) -> Split | None:
    """Return the split that the name of a file or of its folders says; None if none does."""
    words = (word for part in reversed(path.parts) for word in re.split(r"[^a-z]+", part.lower()))
    return next((_SPLIT_OF[word] for word in words if word in _SPLIT_OF), None)


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
    there = sorted(entry.name for entry in path.parent.iterdir())
    close = [
        name for name in difflib.get_close_matches(path.name, there, cutoff=0.5) if _alike(path.stem, Path(name).stem)
    ]
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _alike(one: str, other: str) -> bool:
    """Whether two names without their endings are alike: equal endings alone say little."""
    return difflib.SequenceMatcher(None, one, other).ratio() >= 0.7


def splits_in(folder: Path) -> Iterator[Split]:
    """Yield the splits whose files a folder holds, by their names."""
    files = (path for path in folder.rglob("*") if kind_of(path) and path.name not in _ABOUT)
    yield from sorted({found for path in files if (found := _split_of(path.relative_to(folder)))})

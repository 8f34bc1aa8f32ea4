"""Checksums of a checkpoint that is a directory of shares. A checkpoint that is one file has them inside."""

from __future__ import annotations

import json
import logging
import zlib
from pathlib import Path

from rl_lightning.errors import UserError
from rl_lightning.strategies.parallel import from_every_rank, number_of_ranks, own_rank

log = logging.getLogger(__name__)

#: The file that holds the CRC-32 of every other file of its directory, by name.
CHECKSUMS = "checksums.json"
_PIECE = 1 << 20  # bytes read at a time


def write_checksums(directory: Path) -> None:
    """Write the CRC-32 of every file of a directory into it. All ranks call this together; each reads its share of the files."""
    sums = from_every_rank({name: _crc(directory / name) for name in _own(_names(directory))})
    if own_rank() == 0:
        together = {name: value for part in sums for name, value in part.items()}
        (directory / CHECKSUMS).write_text(json.dumps(together, indent=1, sort_keys=True))


def check_directory(directory: Path) -> None:
    """Compare the files of a checkpoint that is a directory with their checksums. All ranks call this together.

    Raises:
        UserError: on every rank, if a file is missing or differs, or the directory is no checkpoint.
    """
    for reason in from_every_rank(_what_differs(directory)):
        if reason is not None:
            raise UserError(f"{directory} cannot be read, it is damaged or no checkpoint: {reason}; take another one")


def _what_differs(directory: Path) -> str | None:
    """Return what is wrong with this rank's share of the files; None if nothing is."""
    try:
        present = _names(directory)
        if not {".metadata", "meta.pt"} <= set(present):
            return "it is a directory without the shares of a checkpoint"
        if not (directory / CHECKSUMS).exists():
            log.warning("%s has no %s, so it is not checked for damage", directory, CHECKSUMS)
            return None
        expected: dict[str, int] = json.loads((directory / CHECKSUMS).read_text(encoding="utf-8"))
        if set(expected) != set(present):
            return f"its files are not those that were written: {', '.join(sorted(set(expected) ^ set(present))[:5])}"
        for name in _own(sorted(expected)):
            if _crc(directory / name) != expected[name]:
                return f"{name} is not what was written (CRC-32)"
    except (ValueError, AttributeError, TypeError) as error:
        return f"{CHECKSUMS}: {error}"
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    return None


def _names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.is_file() and path.name != CHECKSUMS)


def _own(names: list[str]) -> list[str]:
    """Return this rank's share of some names."""
    return names[own_rank() :: number_of_ranks()]


def _crc(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            value = zlib.crc32(piece, value)
    return value

"""The names of metrics that docs/concepts/metrics.md explains."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "concepts" / "metrics.md"
#: Rows of the tables: name, unit, what it is, healthy, what to do.
ROWS = [
    [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
    for line in PAGE.read_text(encoding="utf-8").splitlines()
    if line.startswith("| `")
]
#: A name in capitals stands for any, such as NAME in `reward/NAME`; what `test` logs has the names of `val`.
_KNOWN = re.compile(
    "|".join(re.sub("[A-Z]+$", r".+", name) for row in ROWS for name in re.findall(r"^`([\w/@]+)`", row[0]))
)


def unexplained(names: Iterable[str]) -> set[str]:
    """Return the names that the page lacks."""
    return {name for name in names if not _KNOWN.fullmatch(re.sub("^test/", "val/", name))}

"""The lines of benchmarks as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_COLUMNS = ("benchmark", "times faster", "(range)", "own s", "peer s", "tokens/s", "memory", "roofline")
_COLUMNS += ("others' cores", "peer")


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Return a text table with one row per benchmark; missing fields are a dash."""
    rows = [_COLUMNS, *map(_cells, lines)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _cells(line: dict[str, Any]) -> tuple[str, ...]:
    spread = None if line.get("ratio_min") is None else f"{line['ratio_min']:.2f} to {line['ratio_max']:.2f}"
    return (
        line["name"],
        _number(line.get("ratio"), ".2f"),
        spread or "-",
        _number(line.get("own_s"), ".3f"),
        _number(line.get("peer_s"), ".3f"),
        _number(line.get("tokens_per_s"), ".0f"),
        _number(line.get("memory_ratio"), ".2f"),
        _number(line.get("roofline"), ".2f"),
        _number(line.get("other_cpu"), ".2f"),
        line.get("peer") or "-",
    )


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)

"""Collecting what is wrong with rows of data, to say it all at once."""

from __future__ import annotations

from rl_lightning.errors import UserError

_SHOWN = 20


class Problems:
    """Everything that is wrong with some rows, by place.

    A file with forty bad lines is mended in one go if they are all named at once, and in forty if only the first is.

    Example:
        >>> problems = Problems()
        >>> problems.add("train.jsonl:17", "column 'prompt' is empty")
        >>> len(problems)
        1
    """

    def __init__(self) -> None:
        self._lines: list[str] = []
        #: The rows that cannot be used, by location: the kind of the first problem of each.
        self.rows: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._lines)

    def add(self, location: str, what: str, kind: str | None = None) -> None:
        """Note a problem.

        Args:
            location: where it is, such as ``train.jsonl:17``.
            what: what is wrong there.
            kind: what to count it as; `what` itself if None.
        """
        self._lines.append(f"{location}: {what}")
        self.rows.setdefault(location, kind or what)

    def raise_if_any(self, headline: str) -> None:
        """Report the problems, if there are any.

        Args:
            headline: what they have in common, and what to do about it.

        Raises:
            UserError: the headline, the first twenty problems, a line each, and how many more there are.
        """
        if not self._lines:
            return
        shown = self._lines[:_SHOWN]
        if len(self._lines) > _SHOWN:
            shown = [*shown, f"... and {len(self._lines) - _SHOWN} more"]
        raise UserError("\n  ".join([headline, *shown]))

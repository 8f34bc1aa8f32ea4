"""The pages of the documentation, as the command line prints them: they come with the package."""

from __future__ import annotations

import difflib
from pathlib import Path

from rl_lightning.errors import UserError

_PACKAGE = Path(__file__).parent
#: In a wheel they are a folder of the package; in a checkout they stand beside it.
FOLDER = next((place for place in (_PACKAGE / "docs", _PACKAGE.parent / "docs") if place.is_dir()), _PACKAGE / "docs")
#: Lines that a search shows.
_SHOWN = 20


def pages() -> dict[str, Path]:
    """Return name → file of every page: `start/own-data` and so on."""
    return {path.relative_to(FOLDER).with_suffix("").as_posix(): path for path in sorted(FOLDER.rglob("*.md"))}


def contents() -> list[str]:
    """Return a line for each page: its name and its title."""
    return [f"  {name:<34}{_text(path).splitlines()[0].lstrip('# ')}" for name, path in pages().items()]


def asked(question: str) -> str:
    """Return a page by its name, or the lines of all pages that hold some words.

    Args:
        question: such as `start/own-data`, `own-data` or `policy/entropy`.

    Raises:
        UserError: if there is no page of that name, and the words are nowhere.
    """
    known = pages()
    name = question.removesuffix(".md").removeprefix("docs/")
    named = [page for page in (name, f"{name}/index") if page in known] or [
        page for page in known if page.endswith(f"/{name}")
    ]
    if len(named) == 1:
        return _text(known[named[0]])
    found = [
        f"{page}: {' '.join(line.split())}"
        for page, path in known.items()
        for line in _text(path).splitlines()
        if question.lower() in line.lower()
    ]
    if not found:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean '{close[0]}'?" if close else "rl-lightning docs  lists the pages"
        raise UserError(f"no page is named {question}, and none holds these words; {hint}")
    rest = [f"... and {len(found) - _SHOWN} more lines"] if len(found) > _SHOWN else []
    return "\n".join(found[:_SHOWN] + rest)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")

"""YAML files, read with an eye to what a person may have got wrong in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from rl_lightning.errors import UserError


def settings_of(text: str, name: str) -> dict[str, Any]:
    """Return the settings of a YAML.

    Args:
        text: of it.
        name: what messages call it.

    Raises:
        UserError: naming, where there is one, the line that is no YAML, names a key twice, or holds no settings.
    """
    try:
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        if tree is None:
            raise UserError(f"{name} is empty: it takes sections such as model, data and trainer")
        if not isinstance(tree, yaml.MappingNode):
            kind = "a list" if isinstance(tree, yaml.SequenceNode) else "a single value"
            raise UserError(f"{name} holds {kind}: it takes sections such as model, data and trainer")
        _refuse_twice(tree, name, set())
        settings: dict[str, Any] = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        raise UserError(_said(error, name, text)) from error
    except yaml.YAMLError as error:  # a character that no YAML holds
        raise UserError(f"{name}: {' '.join(str(error).split())}") from error
    wrong = next((key for key in settings if not isinstance(key, str)), None)
    if wrong is not None:
        raise UserError(f"{name}: {wrong!r} is no name of a section")
    return settings


def read_text(path: str | Path) -> str:
    """Return the text of a file.

    Raises:
        UserError: if it cannot be read, naming the line that is no UTF-8.
    """
    try:
        contents = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    try:
        return contents.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = contents.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: a byte that is no UTF-8: save the file as UTF-8") from error


def _said(error: yaml.MarkedYAMLError, name: str, text: str) -> str:
    """Return where and what is wrong, in words."""
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else 1
    lines = text.splitlines()
    indent = lines[line - 1][: -len(lines[line - 1].lstrip())] if 0 < line <= len(lines) else ""
    if "\t" in indent or "'\\t'" in str(error.problem):
        return f"{name}:{line}: a tab: YAML is indented by spaces"
    about = f"{error.context}: " if error.context else ""
    return f"{name}:{line}: no YAML: {about}{error.problem}; look at indentation, quotes and brackets from here upwards"


def _refuse_twice(node: yaml.Node, name: str, seen: set[int]) -> None:
    """Refuse a key that stands twice in one place: YAML readers take the last and say nothing."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_twice(item, name, seen)
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[str, int] = {}
    for key, value in node.value:
        line, option = key.start_mark.line + 1, str(key.value)
        if option in lines and option != "<<":
            raise UserError(f"{name}:{line}: {option} stands here again, after line {lines[option]}: keep one of them")
        lines[option] = line
        _refuse_twice(value, name, seen)

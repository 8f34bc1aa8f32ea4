"""Reading of YAML files, with messages that name the file and the line of a mistake."""

from __future__ import annotations

from pathlib import Path

import yaml

from rl_lightning.errors import UserError

# libyaml, with which PyYAML's wheels are built, reads and writes ten times as fast.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def load(text: str) -> object:
    """Return what YAML text says.

    Raises:
        yaml.YAMLError: if it is no YAML, or a value in it is none.
    """
    try:
        said: object = yaml.load(text, Loader=_LOADER)
    except (ValueError, RecursionError) as error:
        raise yaml.YAMLError(str(error)) from error
    return said


def dump(settings: object) -> str:
    """Return plain settings as YAML, a line each, in their order."""
    text: str = yaml.dump(settings, Dumper=_DUMPER, default_flow_style=False, sort_keys=False, allow_unicode=True)
    return text


def settings_of(text: str, name: str) -> dict[str, object]:
    """Parse the text of a YAML file.

    Args:
        text: the text.
        name: the file's name in messages.

    Returns:
        Section → settings.

    Raises:
        UserError: for a text that is not YAML, names a key twice, is empty, nested too deeply, or not a mapping, or has a value that
            is none, such as the date 2026-13-45; with the line, if there is one.
    """
    try:
        tree = _tree(text)
        if tree is None:
            raise UserError(f"{name} is empty: it takes sections such as model, data and trainer")
        if not isinstance(tree, yaml.MappingNode):
            kind = "a list" if isinstance(tree, yaml.SequenceNode) else "a single value"
            raise UserError(f"{name} holds {kind}: it takes sections such as model, data and trainer")
        _refuse_twice(tree, name, set())
        settings: dict[str, object] = yaml.load(text, Loader=_LOADER)
    except yaml.MarkedYAMLError as error:
        raise UserError(_said(error, name, text)) from error
    except (yaml.YAMLError, UnicodeEncodeError) as error:  # a character that YAML does not allow
        raise UserError(f"{name}: {' '.join(str(error).split())}") from error
    except ValueError as error:
        raise UserError(f"{name}:{_line_without_value(text)}: {error}: put a text into quotes") from error
    except RecursionError as error:
        raise UserError(f"{name} is nested too deeply") from error
    wrong = [key for key in settings if not isinstance(key, str)]
    if wrong or not isinstance(settings, dict):
        raise UserError(f"{name}: {wrong[0] if wrong else settings!r} is no name of a section")
    return settings


def _line_without_value(text: str) -> int:
    """Return the line of a value that has the form of a number or a date, and is none."""
    loader = yaml.SafeLoader(text)
    nodes = [loader.get_single_node()]
    for node in nodes:
        if isinstance(node, yaml.ScalarNode):
            try:
                loader.construct_object(node)
            except ValueError:
                return int(node.start_mark.line) + 1
        else:
            parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
            nodes += [part for part in parts if not any(part is known for known in nodes)]
    return 1


def _tree(text: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=_LOADER)
    except yaml.YAMLError:
        return yaml.compose(text, Loader=yaml.SafeLoader)  # says more of a mistake


def read_text(path: str | Path) -> str:
    """Read a UTF-8 file, with or without a byte order mark.

    Raises:
        UserError: if the file cannot be read, or is not UTF-8; then with the line.
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
    """Return a message for a parser's error: file, line and mistake."""
    if Path(name).suffix in (".jsonl", ".csv", ".parquet"):
        return f"{name} holds rows and no options: give them as --data.prompts=FileExamples --data.prompts.train={name}"
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else 1
    lines = text.splitlines()
    indent = lines[line - 1][: -len(lines[line - 1].lstrip())] if 0 < line <= len(lines) else ""
    if "\t" in indent or "'\\t'" in str(error.problem):
        return f"{name}:{line}: a tab: YAML is indented by spaces"
    about = f"{error.context}: " if error.context else ""
    return f"{name}:{line}: no YAML: {about}{error.problem}; look at indentation, quotes and brackets from here upwards"


def _refuse_twice(node: yaml.Node, name: str, seen: set[int]) -> None:
    """Refuse a key that occurs twice in one mapping: YAML parsers would silently use the last one.

    Args:
        node: the parsed text, or a part of it.
        name: the file's name in messages.
        seen: ids of nodes that were checked, since aliases occur several times.
    """
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

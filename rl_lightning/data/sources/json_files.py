"""Rows of JSON files: one object a line, or one array of objects."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import IO

from rl_lightning.data.sources.problems import Problems
from rl_lightning.data.sources.values import BadValue
from rl_lightning.errors import UserError

_SPACE = re.compile(r"[ \t\n\r]*")
_BOM = b"\xef\xbb\xbf"


def json_rows(file: IO[bytes], where: str, problems: Problems) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield the objects of a file with the lines where they begin; note what is no object.

    Args:
        file: open, as bytes, so that a line that is no UTF-8 is a bad line, not a bad file.
        where: what messages call it.
        problems: where bad lines are noted.
    """
    number = 0
    for number, line in enumerate(file, start=1):
        line = line.removeprefix(_BOM) if number == 1 else line
        begun = line.lstrip()
        if begun:
            break
    else:
        return
    if begun.startswith(b"["):
        yield from _array(line + file.read(), number, where, problems)
    elif begun.rstrip() == b"{":
        raise UserError(
            f"{where} holds one JSON object over several lines; write one object a line (JSONL), or an array of objects: "
            "[{...}, {...}]"
        )
    else:
        yield from _lines(line, file, number, where, problems)


def _lines(
    line: bytes, file: IO[bytes], number: int, where: str, problems: Problems
) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield the objects of JSON lines, of which the first is read already."""
    while line:
        if not line.isspace():
            location = f"{where}:{number}"
            try:
                yield location, _object(_parsed(_utf8(line)))
            except json.JSONDecodeError as error:
                problems.add(
                    location, f"invalid JSON: {error.msg.removesuffix(' at')} at column {error.colno}", "invalid JSON"
                )
            except BadValue as bad:
                problems.add(location, str(bad), bad.kind)
            except RecursionError:
                problems.add(location, "JSON that is nested too deeply")
        line, number = file.readline(), number + 1


def _array(data: bytes, line: int, where: str, problems: Problems) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield the objects of an array that begins at a line.

    Raises:
        UserError: if it is no JSON; nothing after that place can be read.
    """
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{where}:{line + data.count(10, 0, error.start)}: not UTF-8 text") from error
    del data
    place, counted = text.index("[") + 1, 0
    try:
        while True:
            place = _SPACE.match(text, place).end()  # type: ignore[union-attr]
            line, counted = line + text.count("\n", counted, place), place
            if text[place : place + 1] == "]":
                break
            value, place = _DECODER.raw_decode(text, place)
            try:
                yield f"{where}:{line}", _object(value)
            except BadValue as bad:
                problems.add(f"{where}:{line}", str(bad), bad.kind)
            place = _SPACE.match(text, place).end()  # type: ignore[union-attr]
            if text[place : place + 1] == ",":
                place += 1
            elif text[place : place + 1] != "]":
                raise json.JSONDecodeError("Expecting ',' or ']'", text, place)
    except json.JSONDecodeError as error:
        at = f"{where}:{line + text.count(chr(10), counted, error.pos)}"
        raise UserError(
            f"{at}: invalid JSON: {error.msg.removesuffix(' at')} at column {error.colno}; the array cannot be read from there on"
        ) from error
    except RecursionError as error:
        raise UserError(f"{where}:{line}: JSON that is nested too deeply") from error
    if text[place + 1 :].strip():
        raise UserError(f"{where}: there is more after the end of the array; write one array, or one object a line")


def _utf8(line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise BadValue("not UTF-8 text") from error


def _parsed(text: str) -> object:
    """Return what a line says. (`JSONDecoder.decode` would look for white space around it with regular expressions.)"""
    value, end = _DECODER.raw_decode(text, len(text) - len(text.lstrip()))
    rest = text[end:]
    if rest and not rest.isspace():
        raise json.JSONDecodeError("Extra data", text, end)
    return value


def _object(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise BadValue(f"not a JSON object but of type {type(value).__name__}", "not a JSON object")
    return value


def _integer(digits: str) -> int | str:
    """Return an integer; its text where Python refuses to convert one of so many digits."""
    try:
        return int(digits)
    except ValueError:
        return digits


_DECODER = json.JSONDecoder(parse_int=_integer)

"""Tables of the options of classes, from their signatures and docstrings: `python -m examples.site.options` writes them into docs/.

A page says where: between `<!-- options: rl_lightning.algorithms.GRPO -->` and `<!-- end of options -->` stands the table of a class,
between `<!-- classes: rl_lightning.data less Example -->` and `<!-- end of classes -->` a section for each public class of a room, less
those that are named.
"""

from __future__ import annotations

import importlib
import inspect
import re
import types
import typing
from pathlib import Path
from typing import Any

from rl_lightning.defaults import default_callbacks
from rl_lightning.options import Parser

DOCS = Path(__file__).parents[2] / "docs"
_ONE = re.compile(r"(<!-- options: ([\w.]+) -->\n).*?(<!-- end of options -->)", re.S)
_ROOM = re.compile(r"(<!-- classes: ([\w.]+)(?: less ([\w ]+))? -->\n).*?(<!-- end of classes -->)", re.S)
#: `name, another: what they are`, with the lines that belong to it.
_ARGUMENTS = re.compile(r"^ *((?:\*{0,2}\w+, )*\*{0,2}\w+): (.*(?:\n {8,}.*)*)", re.M)


def table(kind: type) -> str:
    """Return a Markdown table of everything that a class can be given, those of its ancestors included."""
    parser = Parser()
    parser.add_class_arguments(kind, fail_untyped=False)
    lines = ["| option | takes | default | |", "|---|---|---|---|"]
    for action in parser._actions:
        if action.dest == "help" or "." in action.dest:
            continue
        takes = written(getattr(action, "_typehint", action.type))
        words = " ".join((action.help or _said_with_others(kind, action.dest)).split())
        default = "required" if action.required else _yaml(action.default)
        lines.append("| " + " | ".join(map(_cell, (f"`{action.dest}`", takes, default, words))) + " |")
    return "\n".join(lines) if len(lines) > 2 else "No options."


def sections(room: str, less: list[str]) -> str:
    """Return a section for each public class of a module, with what it does and its options."""
    module = importlib.import_module(room)
    always = {type(one).__name__ for one in default_callbacks()}
    parts = []
    for name in sorted(module.__all__):
        kind = getattr(module, name)
        if name not in less and inspect.isclass(kind):
            first = " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split())
            parts.append(f"### {name}\n\n{first}{' *In every run.*' * (name in always)}\n\n{table(kind)}\n")
    return "\n".join(parts)


def written(kind: Any) -> str:
    """Return a type as a reader of YAML would call it."""
    if kind is None or kind is type(None):
        return "null"
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(written(one) for one in inner if one is not type(None)))
    if origin is typing.Literal:
        return ", ".join(f"`{one}`" for one in inner)
    if origin in (list, tuple):
        return f"list of {written(inner[0])}" if inner else "list"
    if origin is dict:
        return "mapping"
    names = {int: "whole number", float: "number", str: "text", bool: "true or false", dict: "mapping", list: "list"}
    return names.get(kind) or getattr(kind, "__name__", str(kind).rpartition(".")[2])


def page(text: str) -> str:
    """Return a page with its tables as they are now."""
    text = _ONE.sub(lambda found: f"{found[1]}{table(_named(found[2]))}\n{found[3]}", text)
    return _ROOM.sub(lambda found: f"{found[1]}{sections(found[2], (found[3] or '').split())}{found[4]}", text)


def _named(path: str) -> type:
    module, _, name = path.rpartition(".")
    found: type = getattr(importlib.import_module(module), name)
    return found


def _said_with_others(kind: type, option: str) -> str:
    """Return what a docstring says of several options at once: `a, b: bounds of it`."""
    for one in kind.__mro__:
        for names, words in _ARGUMENTS.findall(inspect.getdoc(one) or ""):
            if option in names.split(", "):
                return str(words)
    return ""


def _yaml(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def main() -> None:
    """Write the tables of all pages anew."""
    for path in sorted(DOCS.rglob("*.md")):
        text = path.read_text(encoding="utf-8")
        if page(text) != text:
            path.write_text(page(text), encoding="utf-8")
            print(f"wrote {path}")


if __name__ == "__main__":
    main()

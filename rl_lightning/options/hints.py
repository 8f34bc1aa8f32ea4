"""Suggestions for names that are not accepted: a similar name, the path of a nested option, or another library's name for it."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import typing
from collections.abc import Iterable, Iterator
from typing import Protocol

from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from rl_lightning.options.renamed import RENAMED

#: Longer lists of options are not printed.
_LISTED = 25


class Options(Protocol):
    """What hints need to know of a parser."""

    #: The class whose options the parser reads; None for the options of a command.
    described: type | None

    def options(self, section: str = "") -> list[str]:
        """Return the names that are accepted at the top, or in a section."""

    def add_class_arguments(
        self, theclass: type, nested_key: str | None = None, *, fail_untyped: bool = True
    ) -> object:
        """Let the parser read the options of a class."""


def option_hint(name: str, parser: Options, section: str = "") -> str:
    """Return the end of a message about an option that is not accepted: a suggestion, or the list of accepted options.

    Args:
        name: the option; of a dotted path, the part before the first dot was refused.
        parser: the parser that refused it.
        section: the section of the YAML that it is in; empty for the top.

    Returns:
        Text that starts with `;`, or nothing.
    """
    name = name.removesuffix("+").split(".")[0]
    options = parser.options(section)
    if parser.described is not None:
        options += ["class_path", "init_args"]
    paths = [*options, *_inner(parser.described or _section_class(section), options)]
    if parser.described is None and not section:
        paths += _everywhere(type(parser))
    meant = _renamed(name, paths) or _nested(name, paths)
    if not meant and name in RENAMED:
        elsewhere = [path for path in _renamed(name, _everywhere(type(parser))) if _elsewhere(path, parser)]
        if elsewhere:
            inside = elsewhere[0].removeprefix("data.init_args.") + " of the DataModule"
            return f"; {inside if parser.described else elsewhere[0]} sets that"
        if parser.described is None:
            return ""
    meant = meant or difflib.get_close_matches(name, options, n=1)
    if meant:
        return f"; did you mean '{meant[0]}'?"
    shown = [option for option in options if option not in ("class_path", "init_args", "config")]
    return f"; it takes {', '.join(sorted(shown))}" if 0 < len(shown) <= _LISTED else ""


def _elsewhere(path: str, parser: Options) -> bool:
    """Whether a path from the top is worth a word: any for a command; for a class, one of the DataModule."""
    return parser.described is None or path.startswith("data.init_args.")


def _renamed(name: str, paths: Iterable[str]) -> list[str]:
    """Return the paths that mean the same as another library's name."""
    return [
        path
        for target in RENAMED.get(name, ())
        for path in paths
        if path == target or (path.endswith(f".{target}") and path.split(".")[0] in ("model", "data", "trainer"))
    ]


def _nested(name: str, paths: Iterable[str]) -> list[str]:
    """Return the paths whose last part is a name: the option exists, but nested in another one."""
    return [path for path in paths if path.endswith(f".{name}")]


def _inner(kind: object, options: Iterable[str]) -> Iterator[str]:
    """Yield paths such as `optimizer.lr`, for the options of a class that are dataclasses of settings."""
    types = option_types(kind)
    for option in options:
        for inner in _classes(types.get(option)):
            if dataclasses.is_dataclass(inner):
                yield from (f"{option}.{field.name}" for field in dataclasses.fields(inner) if field.init)


def option_types(kind: object) -> dict[str, object]:
    """Return option → type for the constructors of a class and of its ancestors."""
    found: dict[str, object] = {}
    for ancestor in reversed(kind.__mro__ if isinstance(kind, type) else ()):
        if "__init__" in vars(ancestor):
            found |= typing.get_type_hints(vars(ancestor)["__init__"])
    return found


def _classes(annotation: object) -> Iterator[type]:
    """Yield every class inside a type, such as A and B of `list[A] | B`."""
    if isinstance(annotation, type):
        yield annotation
    for part in typing.get_args(annotation):
        yield from _classes(part)


def _subclasses(kind: type) -> Iterator[type]:
    """Yield the subclasses of a class that are loaded, but for Lightning's own."""
    children: list[type] = kind.__subclasses__()
    for one in children:
        if not (one.__module__.startswith("lightning.") and kind in (LightningModule, LightningDataModule)):
            yield one
        yield from _subclasses(one)


def _section_class(section: str) -> type | None:
    return Trainer if section == "trainer" else None


def _sections() -> Iterator[tuple[str, type]]:
    """Yield (section of the YAML, class of this library that it may hold)."""
    yield "trainer", Trainer
    for section, base in (("model.init_args", LightningModule), ("data.init_args", LightningDataModule)):
        yield from ((section, kind) for kind in _subclasses(base) if kind.__module__.startswith("rl_lightning"))


def _everywhere(parser: type[Options]) -> list[str]:
    """Return the options of all classes that a configuration may hold, as paths from its top."""
    return [f"{section}.{path}" for section, kind in _sections() for path in _paths_of(kind, parser)]


@functools.cache
def _paths_of(kind: type, parser: type[Options]) -> list[str]:
    """Return the options of a class, nested ones included, as parsers of a kind read them; to read all classes takes a second."""
    reader = parser()
    reader.add_class_arguments(kind, fail_untyped=False)
    options = [option for option in reader.options() if option != "config"]
    return [*options, *_inner(kind, options)]


def class_hint(name: str, parser: Options, option: str) -> str:
    """Return the end of a message about a class that an option does not take: the class with the most similar name.

    Args:
        name: of the class, with or without its module.
        parser: the parser that refused it.
        option: the option that should have held the class.

    Returns:
        Text that starts with `;`, or nothing.
    """
    classes = list(_classes(_types(parser).get(option)))
    known = sorted({one.__name__ for base in classes for one in [base, *_subclasses(base)]})
    close = difflib.get_close_matches(name.rsplit(".", 1)[-1], known, n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def settings_taken(parser: Options, option: str) -> type | None:
    """Return the dataclass of settings that an option takes, if it takes nothing else."""
    classes = [kind for kind in _classes(_types(parser).get(option)) if kind is not type(None)]
    return classes[0] if len(classes) == 1 and dataclasses.is_dataclass(classes[0]) else None


def _types(parser: Options) -> dict[str, object]:
    """Return option → type for the class that a parser reads, or for a command."""
    if parser.described is not None:
        return option_types(parser.described)
    types = {f"trainer.{key}": value for key, value in option_types(Trainer).items()}
    return types | {"model": LightningModule, "data": LightningDataModule}

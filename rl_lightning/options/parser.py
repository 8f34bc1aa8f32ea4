"""A parser whose error messages are one line."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from rl_lightning.errors import UserError
from rl_lightning.options.hints import class_hint, option_hint, settings_taken
from rl_lightning.options.yaml_files import read_text, settings_of

# jsonargparse reports a mistake inside nested classes as a tree of all types that it tried. These lines of it do not help.
_NOISE = re.compile(
    r"^Does not validate against|^Subtypes:|^Errors:|Expected a <class 'NoneType'>|^Given value|^Problem with given class_path"
    r"|^Expected type: |^Subclass types expect|^a class path|^a dict with"
)
_KEY = re.compile(r'^Parser key "[^"]+"(?: element \d+)?: ?')
#: Words of our own messages, by which one of an inner parser is found in jsonargparse's tree.
_OURS = (" has no option ", " is no class ", " stand under init_args")
#: Arguments of parsers that are no options of a run.
_FLAGS = ("help", "print_config", "print_shtab")
_OF_CLASSES = ("class_path", "init_args", "dict_kwargs")
_UNKNOWN_CLASS = re.compile(
    r"Expected a dot import path string: (\S+)|Problem with given class_path '([^']+)'|has no attribute '(\w+)'"
)


class Parser(LightningArgumentParser):
    """Lightning's parser, with suggestions for wrong names and with checks that jsonargparse lacks."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: The class whose options this parser reads; None for the parser of a command.
        self.described: type | None = None
        #: The configuration as YAML with its interpolations; None if it has none.
        self.written: str | None = None

    def add_class_arguments(self, theclass: Any, nested_key: str | None = None, *args: Any, **kwargs: Any) -> Any:
        """Note the class. jsonargparse makes a parser of its own for each class that a configuration names."""
        if nested_key is None:
            self.described = theclass
        return super().add_class_arguments(theclass, nested_key, *args, **kwargs)

    def dump(self, *args: Any, **kwargs: Any) -> str:
        """Return the configuration as YAML, and keep it if it has interpolations: jsonargparse dumps before it resolves them.

        It is not checked again: nothing is dumped that was not parsed.
        """
        text: str = super().dump(*args, **{"skip_validation": True, **kwargs})
        if "${" in text:
            self.written = text
        return text

    def options(self, section: str = "") -> list[str]:
        """Return the names that are accepted at the top, or in a section."""
        prefix = f"{section}." if section else ""
        names = [action.dest for action in self._actions if action.dest.startswith(prefix)]
        return [
            name for name in dict.fromkeys(name[len(prefix) :].split(".")[0] for name in names) if name not in _FLAGS
        ]

    def parse_object(self, obj: Namespace | dict[str, object], *args: Any, **kwargs: Any) -> Namespace:
        """Parse the options of a class, and refuse names that it does not have, also empty ones, which jsonargparse would drop."""
        if self.described is not None:
            self._refuse_unknown([name for name in _keys(obj) if not name.startswith("__")])
            for name in _keys(obj):
                # `null` on the command line arrives as text where an option takes text too.
                if obj[name] in ("null", "None"):
                    obj[name] = None
        return super().parse_object(obj, *args, **kwargs)

    def _refuse_unknown(self, names: list[str]) -> None:
        known = {*self.options(), "dict_kwargs"}
        unknown = [name for name in names if name.removesuffix("+").split(".")[0] not in known]
        others = [name for name in names if name not in _OF_CLASSES] if "class_path" in unknown else []
        beside = [name for name in others if not get_close_matches(name, _OF_CLASSES)]
        if beside:
            self.error(f"{', '.join(beside)}: options of a class stand under init_args, beside its class_path")
        unknown = [name for name in unknown if name not in _OF_CLASSES] or unknown
        if unknown:
            self.error(f"Option '{unknown[0]}' is not accepted")

    def parse_path(self, path: Any, *args: Any, **kwargs: Any) -> Namespace:
        """Read a YAML file.

        Raises:
            UserError: with the file's name, and the line if the file is not YAML.
        """
        settings = settings_of(read_text(path), str(path))
        try:
            self._check_sections(settings)
            return super().parse_path(path, *args, **kwargs)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error

    def parse_string(self, content: str, path: Any = "", *args: Any, **kwargs: Any) -> Namespace:
        """Read YAML text: of a file, which `parse_path` has checked, or given on the command line."""
        if not path:
            self._check_sections(settings_of(content, "--config"))
        return super().parse_string(content, path, *args, **kwargs)

    def _check_sections(self, settings: Mapping[str, object]) -> None:
        """Refuse unknown names at the top and in the options of sections such as `trainer`, and sections that are no mapping.

        Raises:
            UserError: naming the first of them.
        """
        commands = self._subcommands_action
        reader = self if commands is None else commands.choices["fit"]
        for name, value in settings.items():
            options = reader.options(name)
            if name.split(".")[0] not in [*reader.options(), *(commands.choices if commands else ())]:
                raise UserError(f"there is no section {name!r}{option_hint(name, reader)}")
            if len(options) > 1 and value is not None and not isinstance(value, Mapping):
                raise UserError(f"{name} is a section: it takes names and values, not {value!r}")
            for option in value if len(options) > 1 and isinstance(value, Mapping) else ():
                if str(option).removesuffix("+").split(".")[0] not in options:
                    raise UserError(f"{name} has no option {option!r}{option_hint(option, reader, name)}")

    def error(self, message: str, *args: object, **kwargs: object) -> NoReturn:
        """Raise a `UserError` with one line, where jsonargparse prints the usage of every option and exits."""
        raise UserError(explain(message, self))


def _keys(settings: Namespace | Mapping[str, object] | None) -> list[str]:
    return list(vars(settings) if isinstance(settings, Namespace) else settings or {})


def explain(message: str, parser: Parser) -> str:
    """Return one line for a message of jsonargparse: where the mistake is, what it is, and a suggestion.

    Args:
        message: of jsonargparse, usually a tree of everything that it tried.
        parser: the parser that refused; that of a class, if the configuration names one there.
    """
    unknown = re.match(r"Option '([\w.+]+)' is not accepted|[Uu]nrecognized arguments: --([\w.+]+)", message)
    if unknown:
        return _unknown_option(unknown[1] or unknown[2], message, parser)
    file = re.search(r"Invalid content in sub-config file (.+?): ", message)
    if file:
        settings_of(read_text(file[1]), file[1])  # raises if the file is not YAML
    key = re.match(r'Parser key "([^"]+)"', message)
    place = key[1] if key else ""
    lines = [_KEY.sub("", line.strip(" -")) for line in message.splitlines()]
    kept = list(dict.fromkeys(line for line in lines if line and not _NOISE.search(line)))
    refusals = [line for line in kept if any(words in line for words in _OURS)]
    named = _UNKNOWN_CLASS.search(message)
    if refusals:
        text = refusals[0]
    elif named:
        reason = "; ".join(line for line in kept if not line.startswith("Expected"))
        text = _unknown_class(next(found for found in named.groups() if found), reason, parser, place)
    else:
        text = _plainly("; ".join(kept) or "; ".join(lines), message)
    return f"{place}.{text}" if place and re.match(r"[a-z_][\w.]*: ", text) else f"{place}: {text}" if place else text


def _unknown_option(name: str, message: str, parser: Parser) -> str:
    """Return the message for an option that a class or a section does not have."""
    if parser.described is not None:
        return f"{parser.described.__name__} has no option {name!r}{option_hint(name, parser)}"
    section, _, option = name.partition(".")
    known = bool(option) and section in parser.options()
    return message + (option_hint(option, parser, section) if known else option_hint(section, parser))


def _unknown_class(name: str, reason: str, parser: Parser, place: str) -> str:
    settings = settings_taken(parser, place)
    if settings is not None:
        options = ", ".join(field.name for field in dataclasses.fields(settings) if field.init)
        return f"{name} is no class that this takes; it takes the options {options}"
    because = f" ({reason})" if reason else ""
    rows = place.split(".")[-1] == "prompts" and ("/" in name or Path(name).exists())
    hint = f"; a file is FileExamples with train: {name}, a data set of the hub DatasetExamples with path: {name}"
    return f"{name} is no class that this takes{because}{hint if rows else class_hint(name, parser, place)}"


def _plainly(text: str, message: str) -> str:
    """Return jsonargparse's message about types in plain words, with the value that was given."""
    text = re.sub(r"Expected a <class '(?:\w+\.)*(\w+)'>", r"expected \1", text)
    text = re.sub(r"Not a valid subclass of (\w+)", r"expected class_path and init_args of a \1, or its options", text)
    given = re.search(r"^\s*Given value: (?!NestedArg)(.*)", message, re.MULTILINE)
    return f"{text}, not {given[1]}" if given and text.startswith("expected") and "Got value" not in text else text

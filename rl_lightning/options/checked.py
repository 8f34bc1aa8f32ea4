"""Classes whose options are read in Python as they are read from a YAML file."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

from rl_lightning.errors import UserError
from rl_lightning.options.hints import option_hint, option_types
from rl_lightning.options.parser import Parser
from rl_lightning.typed import by_name, constructor, described, fits, said, signature

#: Attribute of a made object that holds what it was made from.
_GIVEN = "_given_options"
#: Values that a YAML file can hold.
_PLAIN = (bool, int, float, str, type(None))


class Checked(type):
    """Makes the objects of a class from options that are checked first, as the command line checks them.

    Numbers, texts, lists and dicts are read by the class's parser: a dict becomes the dataclass or class that the option takes,
    a wrong name or type ends in the sentence that the command line gives. Objects must be of a class that the option's
    annotation names. What an object was made from is kept for `plain_options`.

    A class may name functions in `accepts`, by option: each turns what people hold, such as a list of rows, into what the
    option takes, and returns what it does not know as it is.

    Example:
        >>> class Walk(metaclass=Checked):
        ...     def __init__(self, steps: int = 1) -> None:
        ...         self.steps = steps
        >>> Walk(steps="many")
        Traceback (most recent call last):
        rl_lightning.errors.UserError: Walk: steps: expected int. Got value: many
    """

    def __call__(cls, *arguments: object, **options: object) -> Any:
        """Return a new object.

        Raises:
            UserError: in one line, for a name that the class does not have, or a value that the option does not take.
        """
        if arguments and isinstance(arguments[0], str) and _takes_others(cls) and not _begins_with_a_text(cls):
            raise UserError(
                f"{cls.__name__} takes its options by name, such as {cls.__name__}({_first(cls)}={arguments[0]!r:.40})"
            )
        given = by_name(cls, arguments, options)
        for name, turn in getattr(cls, "accepts", {}).items():
            if given.get(name) is not None:
                given[name] = turn(given[name])
        made = super().__call__(**_read(cls, given))
        vars(made)[_GIVEN] = given
        return made

    @property
    def __signature__(cls) -> inspect.Signature:
        """What `help` and notebooks show: the parameters of the constructor."""
        return signature(cls)


KindT = TypeVar("KindT")


def read_options(kind: type[KindT], given: Mapping[str, object]) -> KindT:
    """Return an object of a class, made from options that are checked as those of a `Checked` class are.

    Raises:
        UserError: in one line, for a name that the class does not have, or a value that the option does not take.
    """
    return kind(**_read(kind, given))


def plain_options(made: object) -> dict[str, object]:
    """Return the options that an object of a `Checked` class was made with, as a YAML file would hold them.

    Options that no file can hold, such as functions and open models, are left out.
    """
    written = {name: _written(value) for name, value in vars(made)[_GIVEN].items()}
    return {name: value for name, value in written.items() if value is not _UNWRITABLE}


def _read(cls: type, given: Mapping[str, object]) -> dict[str, Any]:
    """Return options as the constructor takes them."""
    readable = _readable(cls)
    unread = {name for name in _own_parameters(cls, readable) if name in given}
    plain = {name: value for name, value in given.items() if name not in unread and _is_plain(value)}
    objects = {name: value for name, value in given.items() if name not in plain}
    parser = _parser(cls, readable, frozenset(objects) - unread)
    expected = option_types(cls)
    for name, value in given.items():
        if name in plain and value is not None:
            continue  # the parser checks it; None it would take for an option that is not given
        if value is not None and name not in unread and name not in _parameters(cls):
            raise UserError(f"{cls.__name__} has no option {name!r}{option_hint(name, parser)}")
        if not fits(value, expected.get(name, Any)):
            raise UserError(f"{cls.__name__}: {name}: expected {said(expected[name])}, not {described(value)}")
    try:
        read = parser.parse_object(plain, defaults=False)
        made = vars(parser.instantiate(read))
    except UserError as error:
        text = str(error)
        raise UserError(text if text.startswith(f"{cls.__name__} ") else f"{cls.__name__}: {text}") from error
    return {name: made[name] for name in plain} | objects


@functools.lru_cache(maxsize=256)
def _parser(cls: type, readable: type, objects: frozenset[str]) -> Parser:
    """Return what reads the options of a class but for those that are given as objects; to read its source takes 0.1 s."""
    parser = Parser()
    parser.add_class_arguments(readable, skip=set(objects), fail_untyped=False)
    parser.described = cls
    return parser


@functools.lru_cache(maxsize=256)
def _takes_others(cls: type) -> bool:
    """Whether a class's constructor hands options on to its ancestors: then its own are no natural first ones."""
    return any(one.kind == one.VAR_KEYWORD for one in inspect.signature(constructor(cls)).parameters.values())


def _begins_with_a_text(cls: type) -> bool:
    """Whether the first option of a class's own constructor can be a text."""
    own = list(inspect.signature(constructor(cls)).parameters.values())[1:]
    return own[0].kind == own[0].POSITIONAL_OR_KEYWORD and fits("", option_types(cls).get(own[0].name, object))


def _first(cls: type) -> str:
    """Return the first option of a class: that of the ancestor whose constructor hands nothing on."""
    own = [one for one in cls.__mro__ if "__init__" in vars(one) and not _takes_others(one)]
    return list(inspect.signature(constructor(own[0])).parameters)[1]


@functools.lru_cache(maxsize=256)
def _readable(cls: type) -> type:
    """Return the class, or the nearest ancestor, whose constructor's text can be found: what `**options` stands for is read there.

    A class that was typed into `python -c` has no text.
    """
    for ancestor in cls.__mro__:
        if "__init__" in vars(ancestor):
            try:
                inspect.getsource(vars(ancestor)["__init__"])
            except (OSError, TypeError):
                continue
            return cls if ancestor is next(one for one in cls.__mro__ if "__init__" in vars(one)) else ancestor
    return cls


def _own_parameters(cls: type, readable: type) -> set[str]:
    """Return the parameters that a class adds to those of its readable ancestor."""
    if readable is cls:
        return set()
    return _parameters(cls) - _parameters(readable)


def _parameters(cls: type) -> set[str]:
    """Return the names of the parameters of a class's constructor and those of its ancestors."""
    constructors = [vars(one)["__init__"] for one in cls.__mro__[:-1] if "__init__" in vars(one)]
    return {name for one in constructors for name in list(inspect.signature(one).parameters)[1:]}


def _is_plain(value: object) -> bool:
    """Whether a YAML file can hold a value."""
    if isinstance(value, Mapping):
        return all(isinstance(name, str) and _is_plain(one) for name, one in value.items())
    if isinstance(value, list | tuple) and type(value) in (list, tuple):  # no named tuple, nor any other subclass
        return all(map(_is_plain, value))
    return isinstance(value, _PLAIN)


_UNWRITABLE = object()


def _written(value: object) -> object:
    """Return a value as a YAML file would hold it; `_UNWRITABLE` if none can."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    elif isinstance(type(value), Checked):
        kind = type(value)
        value = {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": plain_options(value)}
    if isinstance(value, (list, tuple)):
        value = [_written(one) for one in value]
    return value if _is_plain(value) else _UNWRITABLE

"""Classes that check the names and the types of their options when they are made in Python."""

from __future__ import annotations

import difflib
import inspect
import types
import typing
from abc import ABCMeta
from collections.abc import Callable, Mapping
from functools import cache
from numbers import Integral, Real
from typing import Any

from rl_lightning.errors import UserError


class Typed(ABCMeta):
    """Makes the objects of a class after a look at the names and the types of its options.

    Nothing is converted: `rl_lightning.options.Checked` reads numbers, texts and dicts as the command line does.

    Example:
        >>> class Walk(metaclass=Typed):
        ...     def __init__(self, steps: int = 1) -> None:
        ...         self.steps = steps
        >>> Walk(stops=2)
        Traceback (most recent call last):
        rl_lightning.errors.UserError: Walk has no option 'stops'; did you mean 'steps'?
    """

    def __call__(cls, *arguments: object, **options: object) -> Any:
        """Return a new object.

        Raises:
            UserError: in one line, for a name that the class does not have, or a value that the option does not take.
        """
        given, known = by_name(cls, arguments, options), parameters(cls)
        for name in given:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean '{close[0]}'?" if close else f"it takes {', '.join(sorted(known))}"
                raise UserError(f"{cls.__name__} has no option {name!r}" + (f"; {hint}" if known else ""))
        for name, one in known.items():
            if one.default is one.empty and name not in given:
                raise UserError(f"{cls.__name__} needs {name}: give it, as in {cls.__name__}({name}=...)")
        expected = hints(cls)
        for name, value in given.items():
            if value is not known[name].default and not fits(value, expected.get(name, Any)):
                raise UserError(f"{cls.__name__}: {name}: expected {said(expected[name])}, not {described(value)}")
        made = super().__call__(*arguments, **options)
        for name, value in given.items():  # of which the class itself may have said more
            if isinstance(value, float) and value != value:
                raise UserError(f"{cls.__name__}: {name}: expected a number, not nan")
        return made

    @property
    def __signature__(cls) -> inspect.Signature:
        """What `help` and notebooks show: the parameters of the constructor."""
        return signature(cls)


def signature(cls: type) -> inspect.Signature:
    """Return the signature of a class's constructor, without the object itself."""
    whole = inspect.signature(constructor(cls))
    return whole.replace(parameters=list(whole.parameters.values())[1:])


def constructor(cls: type) -> Callable[..., None]:
    """Return the constructor of a class, which may be an ancestor's."""
    found: Callable[..., None] = next(vars(one)["__init__"] for one in cls.__mro__ if "__init__" in vars(one))
    return found


@cache
def parameters(cls: type) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a class's constructor; where it takes any, as in ``**options``, those of its ancestors' too."""
    found: dict[str, inspect.Parameter] = {}
    for ancestor in cls.__mro__[:-1]:
        if "__init__" not in vars(ancestor):
            continue
        own = list(inspect.signature(vars(ancestor)["__init__"]).parameters.values())[1:]
        found = {one.name: one for one in own if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)} | found
        if not any(one.kind == one.VAR_KEYWORD for one in own):
            break
    return found


@cache
def hints(cls: type) -> Mapping[str, object]:
    """Return parameter → annotation for the constructors of a class and of its ancestors."""
    found: dict[str, object] = {}
    for ancestor in reversed(cls.__mro__):
        if "__init__" in vars(ancestor):
            try:
                found |= typing.get_type_hints(vars(ancestor)["__init__"])
            except NameError:  # a name that is there for type checkers alone: this constructor's types are not checked
                continue
    return found


def by_name(cls: type, arguments: tuple[object, ...], options: Mapping[str, object]) -> dict[str, object]:
    """Return all arguments of a constructor by name.

    Raises:
        UserError: for more of them than it takes without a name, or one that is given twice.
    """
    if not arguments:
        return dict(options)
    own = list(inspect.signature(constructor(cls)).parameters.values())[1:]
    takes = [one.name for one in own if one.kind == one.POSITIONAL_OR_KEYWORD]
    if len(arguments) > len(takes):
        count = f"{len(takes)} options without their names" if takes else "no option without its name"
        raise UserError(f"{cls.__name__} takes {count}, not {len(arguments)}: name them, as in name=value")
    twice = next((name for name in takes[: len(arguments)] if name in options), None)
    if twice is not None:
        raise UserError(f"{cls.__name__}: {twice} is given twice, once without its name")
    return dict(zip(takes, arguments, strict=False)) | dict(options)


def fits(value: object, expected: object) -> bool:
    """Whether a value is of a class that an annotation names; what is no class is not looked into."""
    if expected is Any:
        return True
    origin, inner = typing.get_origin(expected), typing.get_args(expected)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, one) for one in inner)
    if origin is typing.Literal:
        return any(value is one or (type(value) is type(one) and value == one) for one in inner)
    if origin is Callable:
        return callable(value)
    if isinstance(origin, type):
        if isinstance(value, str | bytes) or not isinstance(value, (list, tuple) if origin is list else origin):
            return False
        members = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
        return all(any(fits(one, kind) for kind in inner if kind is not Ellipsis) for one in members)
    if expected in (int, float):
        return isinstance(value, Integral if expected is int else Real) and not isinstance(value, bool)
    return (expected is None and value is None) or not isinstance(expected, type) or isinstance(value, expected)


def said(expected: object) -> str:
    """Return an annotation in words."""
    if typing.get_origin(expected) in (typing.Union, types.UnionType):
        return " or ".join(said(one) for one in typing.get_args(expected) if one is not type(None))
    if isinstance(expected, type) and not typing.get_args(expected):
        return expected.__name__
    return str(expected).replace("typing.", "").replace("collections.abc.", "")


def described(value: object) -> str:
    """Return a value in words, as it is found where another is expected."""
    if value is None or isinstance(value, str | bytes | bool | int | float | list | tuple | dict | set):
        text = repr(value)
        return text if len(text) <= 60 else f"{text[:57]}..."
    return f"an object of class {type(value).__name__}"

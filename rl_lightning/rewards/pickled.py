"""Functions as bytes for other processes, also those of the main script, of a notebook, and lambdas."""

from __future__ import annotations

import functools
import inspect
import pickle
import warnings
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType, MethodType, ModuleType

import cloudpickle

from rl_lightning.errors import UserError

_DEEPEST = 6  # functions inside functions


def dumps(thing: object) -> bytes:
    """Return the pickle of something; what only this process can import is pickled by its value.

    The main script and a notebook are modules ``__main__`` that another process has not got.
    """
    try:
        plain = pickle.dumps(thing, protocol=pickle.HIGHEST_PROTOCOL)
    except Exception:
        return _by_value(thing)
    return _by_value(thing) if b"__main__" in plain else plain


def _by_value(thing: object) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it looks at every name of every loaded module, deprecated ones too
        return bytes(cloudpickle.dumps(thing))


def check_travels(name: str, function: Callable[..., object]) -> None:
    """Refuse a function that cannot be sent to another process.

    Raises:
        UserError: names what in it cannot be pickled.
    """
    try:
        dumps(function)
    except Exception as error:
        culprit = _culprit(function) or f"it ({_first_line(error)})"
        raise UserError(
            f"Reward {name} cannot be sent to a worker process, because of {culprit}: make that inside the function, or in a module "
            "that the function imports"
        ) from error


def _culprit(thing: object, depth: int = _DEEPEST) -> str | None:
    """Return the innermost thing that something refers to and that cannot be pickled, in words; None if there is none."""
    for name, part in references(thing):
        try:
            dumps(part)
        except Exception as error:
            inner = _culprit(part, depth - 1) if depth else None
            return inner or f"{name!r}, a {type(part).__name__} ({_first_line(error)})"
    return None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def called(function: Callable[..., object]) -> Callable[..., object]:
    """Return the function inside partials."""
    while isinstance(function, functools.partial):
        function = function.func
    return function


def references(thing: object) -> Iterator[tuple[str, object]]:
    """Yield what a function or object refers to, by name: what it encloses, globals, defaults, arguments, attributes; no modules."""
    for name, part in _all_references(thing):
        if not isinstance(part, ModuleType):
            yield name, part


def _all_references(thing: object) -> Iterator[tuple[str, object]]:
    if isinstance(thing, functools.partial):
        yield "func", thing.func
        yield from ((f"argument {place}", part) for place, part in enumerate(thing.args))
        yield from thing.keywords.items()
    elif isinstance(thing, MethodType):
        yield "self", thing.__self__
        yield from _all_references(thing.__func__)
    elif isinstance(thing, FunctionType):
        yield from inspect.getclosurevars(thing).nonlocals.items()
        known = thing.__globals__
        yield from ((name, known[name]) for name in _names(thing.__code__) if name in known)
        yield from ((f"default {place}", part) for place, part in enumerate(thing.__defaults__ or ()))
        yield from (thing.__kwdefaults__ or {}).items()
    elif callable(thing) and not isinstance(thing, type):
        yield from getattr(thing, "__dict__", {}).items()
        call = type(thing).__call__
        if isinstance(call, FunctionType):  # built-in functions are called through slots, which refer to nothing
            yield from _all_references(call)


def _names(code: CodeType) -> Iterator[str]:
    """Yield the names that some code, and functions defined in it, look up in their module."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)

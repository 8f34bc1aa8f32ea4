"""Importing a function by its dotted path."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Callable, Iterable
from types import ModuleType

from rl_lightning.errors import UserError


def resolve(path: str, what: str = "Reward function", classes: bool = False) -> Callable[..., object]:
    """Import and return the function at a dotted path such as ``my_package.rewards.is_polite``.

    Args:
        path: of the function.
        what: it is, for messages.
        classes: a class will do too.

    Raises:
        UserError: if a part of the path does not exist (the message names the part, and names that are similar), if an import
            fails, or if the object at the path is not a function.
    """
    if not isinstance(path, str) or not all(part.isidentifier() for part in path.split(".")) or "." not in path:
        example = "rl_lightning.rewards.functions.final_answer"
        raise UserError(f"{what} {path!r} is not a dotted path such as {example}")
    module, rest = _import_longest(path, f"{what} {path!r}")
    found: object = module
    for number, part in enumerate(rest):
        if part not in dir(found):
            place = ".".join([module.__name__, *rest[:number]])
            names = [name for name in dir(found) if not name.startswith("_") and callable(getattr(found, name))]
            raise UserError(f"{what} {path!r}: {place} has no {part!r}{_near(part, names)}")
        found = getattr(found, part)
    if not callable(found) or (isinstance(found, type) and not classes):
        raise UserError(f"{what} {path!r} is a {type(found).__name__}, not a function")
    function: Callable[..., object] = found
    return function


def _import_longest(path: str, named: str) -> tuple[ModuleType, list[str]]:
    """Import the modules at the beginning of a path; return the last of them and the remaining parts.

    Args:
        path: dotted.
        named: the path with what it is of, for messages.
    """
    parts = path.split(".")
    module: ModuleType | None = None
    for end in range(1, len(parts)):
        name = ".".join(parts[:end])
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise UserError(f"{named}: importing {name} failed: {error}") from error
            if module is not None and parts[end - 1] in dir(module):
                return module, parts[end - 1 :]
            raise UserError(f"{named}: {_missing(module, parts[end - 1])}") from error
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            raise UserError(f"{named}: importing {name} failed: {text}") from error
    assert module is not None  # a path has at least two parts
    return module, parts[-1:]


def _missing(parent: ModuleType | None, part: str) -> str:
    if parent is None:
        names: Iterable[str] = sorted(set(sys.modules) | {found.name for found in pkgutil.iter_modules()})
        hint = _near(part, [name for name in names if "." not in name])
        return f"no module named {part!r}{hint}; is its folder on PYTHONPATH?"
    inside = [found.name for found in pkgutil.iter_modules(getattr(parent, "__path__", []))]
    return f"{parent.__name__} has no {part!r}{_near(part, [*inside, *dir(parent)])}"


def _near(part: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(part, list(names), n=3)
    return f"; did you mean {' or '.join(near)}?" if near else ""

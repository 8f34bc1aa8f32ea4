"""Which options a class may take over from the class whose place it takes in a configuration."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

from rl_lightning.options.parser import Parser


def inherited(before: type, after: type, given: Mapping[str, object]) -> tuple[list[str], list[str]]:
    """Return which of a class's options mean the same to another class, and which do not.

    An option means the same if both classes have it from one ancestor that declares it. A number that either declares itself,
    such as the width of a clip, is one algorithm's, and says nothing to another.

    Args:
        before: the class that the options were given to.
        after: the one that takes its place.
        given: option → value.

    Returns:
        The names that mean the same and differ from the default, and those that do not mean the same, or that `after` does not have.
    """
    parser = Parser()
    parser.add_class_arguments(after, fail_untyped=False)
    accepted = parser.options()
    other = [name for name in given if name not in accepted or _owner(before, name) is not _owner(after, name)]
    kept = [name for name, value in given.items() if name not in other and _default(after, name) != value]
    return kept, other


def _owner(kind: type, name: str) -> type | None:
    """Return the nearest class whose constructor declares an option."""
    constructors = ((one, vars(one).get("__init__")) for one in kind.__mro__)
    return next((one for one, init in constructors if init and name in inspect.signature(init).parameters), None)


def _default(kind: type, name: str) -> object:
    owner = _owner(kind, name)
    return None if owner is None else inspect.signature(vars(owner)["__init__"]).parameters[name].default

"""What a YAML file says of an environment, and how its function is called."""

from __future__ import annotations

import difflib
import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rl_lightning.environments.episode import Environment
from rl_lightning.environments.games import is_game, played
from rl_lightning.errors import UserError
from rl_lightning.rewards.pickled import called, check_travels
from rl_lightning.rewards.resolve import resolve

if TYPE_CHECKING:
    #: A function, or its dotted path.
    Function = str | Callable[..., object]
else:  # what YAML can say of it, for the command line
    Function = str

#: What an environment may ask for by name, whatever the data are.
GIVEN = ("prompt", "answer", "metadata", "messages", "seed")

#: What fields of an `EnvironmentSpec` hold that YAML would have checked.
_KINDS: dict[str, type | tuple[type, ...]] = {
    "tools": (list, tuple),
    "arguments": Mapping,
    "weight": (int, float),
    "role": str,
    "stop": (list, tuple),
    "unfinished": (int, float),
    "failed": (int, float, type(None)),
}

_USE_TOOLS = "rl_lightning.environments.tools.use_tools"


@dataclass
class EnvironmentSpec:
    """An environment: a generator function that is sent what the policy says, and yields what the policy hears.

    Args:
        function: dotted path, such as ``my_package.games.guess``; in Python also the function itself. A class with ``reset`` and
            ``step``, as Gymnasium has them, will do too. With `tools` alone it is what calls them.
        tools: functions with type hints and docstrings, or their dotted paths. The chat template shows them to the policy, and
            ``said.calls`` are its calls of them. A function that asks for ``tools`` gets them.
        arguments: further keyword arguments of the function.
        weight: factor of the environment's rewards in the sum of all rewards; 0 makes them a metric only.
        role: of messages that the function yields as text, where a chat template is used.
        stop: texts of one token each that end a turn of the policy, beside the end of its message.
        unfinished: added to the rewards so far of an episode that ran out of tokens or turns.
        failed: reward of the turn in which the environment failed (raised, took too long, ended its process). If null, an episode
            that failed has no reward, and none of its tokens counts.
    """

    function: Function | None = None
    tools: list[Function] = field(default_factory=list)
    arguments: dict[str, Any] = field(default_factory=dict)
    weight: float = 1.0
    role: str = "user"
    stop: list[str] = field(default_factory=list)
    unfinished: float = 0.0
    failed: float | None = None

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing."""
        for name, kind in _KINDS.items():
            if not isinstance(getattr(self, name), kind):
                raise UserError(f"environment.{name} cannot be {getattr(self, name)!r}")
        if self.function is None and not self.tools:
            raise UserError("environment: give its function (a dotted path), or tools that the policy may call")
        for name, number in (("weight", self.weight), ("unfinished", self.unfinished), ("failed", self.failed)):
            if number is not None and not math.isfinite(number):
                raise UserError(f"environment.{name} must be a finite number, not {number}")
        if not all(one is None or isinstance(one, str) or callable(one) for one in (self.function, *self.tools)):
            raise UserError("environment: its function and tools are functions, or dotted paths of functions")
        names = [_name(tool) for tool in self.tools]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise UserError(f"environment.tools: two are called {twice!r}: rename one of them")

    @property
    def name(self) -> str:
        """What its reward is called."""
        return _name(self.function or _USE_TOOLS)


@dataclass(frozen=True)
class BoundEnvironment:
    """An environment whose function is known and can be called.

    Args:
        spec: as it was given.
        function: generator function, with the arguments that are the same in every episode.
        tools: the functions.
        takes: what of `GIVEN` the function takes.
        columns: parameters that columns of the data must fill.
        game: the function plays a class: it takes the seed, and what the class is `given`.
    """

    spec: EnvironmentSpec
    function: Environment
    tools: Sequence[Callable[..., object]]
    takes: Sequence[str]
    columns: Sequence[str]
    game: bool = False

    def keywords(self, given: Mapping[str, Any]) -> dict[str, object]:
        """Return the arguments of one episode.

        Args:
            given: a value for each name of `GIVEN`.
        """
        values = {name: given[name] for name in self.takes}
        values |= {name: given["metadata"].get(name) for name in self.columns}
        return {"seed": given["seed"], "given": values} if self.game else values

    def check_columns(self, rows: Sequence[Mapping[str, object]]) -> None:
        """Refuse data without a column that the function cannot do without.

        Raises:
            UserError: naming the column.
        """
        known = {name for row in rows for name in row}
        missing = [name for name in self.columns if name not in known]
        if missing:
            there = f"they have {', '.join(sorted(known))}" if known else "they have none"
            raise UserError(
                f"Environment {self.spec.name} needs {', '.join(map(repr, missing))}: it gets {', '.join(GIVEN)} and columns of the data "
                f"by name ({there}); set anything else under environment.arguments"
            )


def bound(spec: EnvironmentSpec) -> BoundEnvironment:
    """Return an environment with its functions, checked.

    Raises:
        UserError: in one line, if one cannot be imported, called like this, or sent to a worker process.
    """
    tools = [_found(tool, "Tool", False) for tool in spec.tools]
    function = _found(spec.function or _USE_TOOLS, "Environment", True)
    game = is_game(function)
    if isinstance(function, type) and not game:
        raise UserError(
            f"Environment {spec.name} is a class without reset and step: give a generator function, or a class in the shape of Gymnasium's"
        )
    if inspect.isasyncgenfunction(called(function)) or inspect.iscoroutinefunction(called(function)):
        raise UserError(
            f"Environment {spec.name} is an async function: leave the `async` out, each environment has a process to wait in"
        )
    parameters = _parameters(spec.name, function)
    names = [one.name for one in parameters if one.kind in (one.KEYWORD_ONLY, one.POSITIONAL_OR_KEYWORD)]
    arguments = dict(spec.arguments)
    for name in arguments:
        _check_argument(spec.name, name, parameters, names)
    if tools and "tools" in names:
        arguments["tools"] = tools
    for name, part in [(spec.name, function), *((_name(tool), tool) for tool in tools)]:
        check_travels(name, part)
    takes = [name for name in GIVEN if name in names and name not in arguments]
    needed = [one.name for one in parameters if one.default is one.empty and one.name in names]
    columns = [name for name in needed if name not in arguments and name not in GIVEN]
    if "tools" in columns:
        raise UserError(
            f"Environment {spec.name} asks for tools, and there are none: list them under environment.tools"
        )
    made = functools.partial(function, **arguments) if arguments else function
    return BoundEnvironment(spec, functools.partial(played, made) if game else made, tools, takes, columns, game)


def _found(function: Function, what: str, classes: bool) -> Callable[..., Any]:
    if isinstance(function, str):
        return resolve(function, what, classes)
    if not callable(function):
        raise UserError(f"{what} {function!r:.80} is no function: give one, or its dotted path")
    return function


def _name(function: Function) -> str:
    if isinstance(function, str):
        return function.rpartition(".")[2]
    inner = called(function)
    return str(getattr(inner, "__name__", type(inner).__name__))


def _parameters(name: str, function: Callable[..., object]) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError) as error:
        raise UserError(
            f"Environment {name}: its signature cannot be read ({error}): wrap it in a Python function"
        ) from error


def _check_argument(name: str, argument: str, parameters: Sequence[inspect.Parameter], names: Sequence[str]) -> None:
    if argument in GIVEN and argument != "seed":
        raise UserError(f"Environment {name}: {argument!r} comes from the example and cannot be an argument")
    if argument not in names and not any(one.kind == one.VAR_KEYWORD for one in parameters):
        known = [one for one in names if one not in GIVEN]
        near = difflib.get_close_matches(argument, known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(known) or 'none'}"
        raise UserError(f"Environment {name} has no argument {argument!r}: {hint}")

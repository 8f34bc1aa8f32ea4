"""Binding a reward function to its arguments, with all checks that need no sample."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence

from rl_lightning.errors import UserError
from rl_lightning.rewards.bound import BoundReward, accepted, is_coroutine, lacks, settings_of
from rl_lightning.rewards.pickled import called, check_travels
from rl_lightning.rewards.resolve import resolve
from rl_lightning.rewards.spec import BatchReward, RewardSpec
from rl_lightning.rewards.styles import LISTS, Style, style_of

#: Coroutines in flight in one worker, where the reward does not say.
_IN_FLIGHT = 32

Parameters = Sequence[inspect.Parameter]


def bind_batch(reward: BatchReward) -> BoundReward:
    """Return a batched reward as a `BoundReward`.

    Raises:
        UserError: if its weight is not finite.
    """
    _check_weight(reward.name, reward.weight)
    return BoundReward(
        reward.name, reward.weight, reward.function, dict(reward.arguments), style=LISTS, in_process=True
    )


def bind(spec: RewardSpec) -> BoundReward:
    """Resolve a reward function and check its arguments.

    Raises:
        UserError: in one line, if the function cannot be imported, called with these arguments, or sent to another process.
    """
    function, arguments = spec.function, dict(spec.arguments)
    if function is None:
        raise UserError(
            f"The reward model {spec.model!r} must be loaded first: a DataModule does that, list it under data.init_args.rewards"
        )
    here = resolve(function) if isinstance(function, str) else function
    name = spec.name or _name(function)
    _check_weight(name, spec.weight)
    parameters = _parameters(name, here)
    style = style_of(parameters, spec.batched)
    _check_arguments(name, parameters, arguments, style)
    check = getattr(called(here), "check_arguments", None)
    if check is not None:
        try:
            check(**accepted(check, settings_of(here, arguments)))
        except ValueError as error:
            raise UserError(f"Reward {name}: {error}") from error
    path = getattr(called(here), "prepare", None)
    if not isinstance(function, str):
        check_travels(name, function)
    open_ended = any(p.kind == p.VAR_KEYWORD for p in parameters)
    names = [p.name for p in _by_name(parameters) if p.name not in arguments]
    columns = _columns(parameters, arguments, style)
    others = tuple(n for n in names if n not in (*style.values, *style.tools, *columns))
    return BoundReward(
        name,
        spec.weight,
        here,
        arguments,
        path=function if isinstance(function, str) else None,
        style=style,
        takes=tuple(n for n in style.values if n in names or (open_ended and n in style.always)),
        columns=tuple(columns),
        optional=(None if open_ended else others) if style.all_columns else (),
        tools=tuple(n for n in style.tools if n in names or open_ended),
        state=style.all_columns and (open_ended or "trainer_state" in names),
        tokenizer="tokenizer" in names,
        concurrency=spec.concurrency or (_IN_FLIGHT if is_coroutine(here) else None),
        prepare=(path, accepted(resolve(path), settings_of(here, arguments))) if path is not None else None,
    )


def _check_weight(name: str, weight: float) -> None:
    if not math.isfinite(weight):
        raise UserError(f"Reward {name}: weight must be a finite number, not {weight}")


def _name(function: str | Callable[..., object]) -> str:
    if isinstance(function, str):
        return function.rpartition(".")[2]
    inner = called(function)
    found = getattr(inner, "__name__", type(inner).__name__)
    return "lambda" if found == "<lambda>" else str(found)


def _parameters(name: str, function: Callable[..., object]) -> Parameters:
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError) as error:
        message = f"Reward {name}: its signature cannot be read ({error}); wrap it in a Python function"
        raise UserError(message) from error


def _by_name(parameters: Parameters) -> Parameters:
    return [p for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]


def _check_arguments(name: str, parameters: Parameters, arguments: Mapping[str, object], style: Style) -> None:
    """Check that a function takes its configured arguments, and that nothing but keywords is needed."""
    names = [p.name for p in _by_name(parameters)]
    takes_all = any(p.kind == p.VAR_KEYWORD for p in parameters)
    for argument in arguments:
        if argument in style.always:
            raise UserError(f"Reward {name}: {argument!r} comes from the sample and cannot be an argument")
        if argument not in names and not takes_all:
            known = [n for n in names if n not in style.values]
            near = difflib.get_close_matches(argument, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(known) or 'none'}"
            raise UserError(f"Reward {name} has no argument {argument!r}: {hint}")
    unnamed = [p.name for p in parameters if p.kind == p.POSITIONAL_ONLY and p.default is p.empty]
    if unnamed:
        raise UserError(lacks(name, unnamed, style))


def _columns(parameters: Parameters, arguments: Mapping[str, object], style: Style) -> list[str]:
    """Return the parameters that columns of the data must fill: those without a default that nothing else fills."""
    others = {*style.values, *style.tools, *arguments, "tokenizer", *(["trainer_state"] if style.all_columns else [])}
    return [p.name for p in _by_name(parameters) if p.default is p.empty and p.name not in others]

"""Binding a reward function to its arguments, with all checks that need no sample."""

from __future__ import annotations

import difflib
import functools
import inspect
import itertools
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from rl_lightning.errors import UserError
from rl_lightning.rewards import tally
from rl_lightning.rewards.pickled import called, check_travels
from rl_lightning.rewards.resolve import resolve
from rl_lightning.rewards.spec import BatchReward, Outcome, RewardSample, RewardSpec
from rl_lightning.rewards.styles import ANSWERS, LISTS, SAMPLE, Style, column, style_of
from rl_lightning.rewards.tally import Said

#: Samples in one call of a function that takes lists, at most; samples of one prompt stay together.
_MOST_IN_A_CALL = 64
#: Coroutines in flight in one worker, where the reward does not say.
_IN_FLIGHT = 32

Parameters = Sequence[inspect.Parameter]


@dataclass(frozen=True)
class BoundReward:
    """A reward function with its weight and arguments, checked against its signature.

    Args:
        name: of its component in `Scores` and of its metric.
        weight: factor in the sum of rewards.
        here: the function, as a callable of this process.
        arguments: its configured arguments.
        path: its dotted path, if it was given by one.
        style: how it is called.
        takes: which of the style's values it takes.
        columns: parameters that columns of the data must fill.
        optional: parameters that columns of the data fill if there are some of these names; None for every column.
        tools: which of the style's tools it takes.
        state: it takes TRL's ``trainer_state``.
        tokenizer: it takes the tokenizer.
        in_process: it runs in this process, once for all samples.
        concurrency: calls at a time in processes of its own; None in those that rewards share.
        prepare: dotted path and arguments of a call that each worker makes once beforehand; None if there is none.
    """

    name: str
    weight: float
    here: Callable[..., Any]
    arguments: Mapping[str, Any]
    path: str | None = None
    style: Style = SAMPLE
    takes: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    optional: tuple[str, ...] | None = ()
    tools: tuple[str, ...] = ()
    state: bool = False
    tokenizer: bool = False
    in_process: bool = False
    concurrency: int | None = None
    prepare: tuple[str, dict[str, Any]] | None = None

    @property
    def waits(self) -> bool:
        """Whether it is a coroutine function, of which one process makes many calls at a time."""
        return is_coroutine(self.here)

    def sent(self, tokenizer: Any) -> str | Callable[..., Any]:
        """Return what workers are sent: the path, or the function with what is the same in every call.

        Raises:
            UserError: if it takes the tokenizer, and there is none.
        """
        given = {name: self.style.tools[name] for name in self.tools}
        if self.tokenizer:
            if tokenizer is None:
                raise UserError(
                    f"Reward {self.name} takes the tokenizer, and none was given: call Rewarder.start(tokenizer)"
                )
            given["tokenizer"] = tokenizer
        if given:
            return functools.partial(self.here, **given)
        return self.path or self.here

    def parts(self, samples: Sequence[RewardSample]) -> list[list[RewardSample]]:
        """Return the samples of each call: one, or where it takes lists up to 64, and more of one prompt."""
        if not self.style.batched:
            return [[sample] for sample in samples]
        parts: list[list[RewardSample]] = []
        for _, group in itertools.groupby(samples, lambda sample: sample.prompt):
            more = list(group)
            if parts and len(parts[-1]) + len(more) <= _MOST_IN_A_CALL:
                parts[-1] += more
            else:
                parts.append(more)
        return parts

    def keywords(self, samples: Sequence[RewardSample], step: int = 0) -> dict[str, Any]:
        """Return the keyword arguments of a call.

        Args:
            samples: of the call; one, unless it takes lists.
            step: optimizer steps so far.
        """
        values = {name: self.style.values[name] for name in self.takes} | {n: column(n) for n in self.columns}
        if self.optional != ():
            known = dict.fromkeys(["answer", *(name for sample in samples for name in sample.metadata)])
            wanted = [name for name in known if self.optional is None or name in self.optional]
            values = {name: column(name) for name in wanted} | values
        state = {"trainer_state": SimpleNamespace(global_step=step)} if self.state else {}
        read: dict[str, Any] = {
            name: [value(sample) for sample in samples] if self.style.batched else value(samples[0])
            for name, value in values.items()
        }
        return {**read, **state, **self.arguments}

    def each(self, outcome: Outcome, count: int) -> list[Outcome]:
        """Return the outcome of each sample of a call.

        Args:
            outcome: of the call.
            count: samples in it.
        """
        if not self.style.batched:
            return [outcome]
        values = outcome.value
        if outcome.kind == "ok" and not (isinstance(values, list) and len(values) == count):
            what = f"{len(values)} values" if isinstance(values, list) else f"{values!r:.80}"
            outcome, values = Outcome("raised", None, f"It returned {what} for {count} samples", outcome.said), None
        said = outcome.said
        notes = [
            {
                name: value[place]
                for name, value in said.notes.items()
                if isinstance(value, list) and len(value) == count
            }
            for place in range(count)
        ]
        # The events that it counted belong to the call; the first sample's outcome carries them.
        whole = [Said(said.counts, notes[0], said.measures), *(Said(notes=each) for each in notes[1:])]
        shared = values if outcome.kind == "ok" else [None] * count
        return [Outcome(outcome.kind, shared[place], outcome.error, whole[place]) for place in range(count)]

    def call_here(self, samples: Sequence[RewardSample]) -> list[Outcome]:
        """Call the function on all samples, in this process, where nothing stops it if it hangs.

        Raises:
            ValueError: if it returns another number of scores. What it raises is raised too.
        """
        values = list(self.here(samples)) if samples else []
        if len(values) != len(samples):
            raise ValueError(f"Reward {self.name} returned {len(values)} scores for {len(samples)} samples")
        said = [tally.drain(), *(Said() for _ in samples[1:])]
        return [Outcome("ok", value, None, one) for value, one in zip(values, said, strict=False)]

    def answer_problem(self, answer: Any) -> str | None:
        """Return what the function's ``check_answer`` finds wrong with a gold answer; None if nothing is, or if it has none."""
        check = getattr(called(self.here), "check_answer", None)
        if check is None:
            return None
        try:
            check(answer, **_accepted(check, _settings(self.here, self.arguments)))
        except ValueError as error:
            return f"{self.name}: {error}"
        return None

    def check_columns(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Refuse data without a column that the function cannot do without.

        Args:
            rows: of the data, or those columns of them that rewards may have.

        Raises:
            UserError: names the column.
        """
        if not self.columns:
            return
        known = {name for row in rows for name in row}
        missing = [name for name in self.columns if name not in known and name not in ANSWERS]
        if missing:
            raise UserError(
                _needs(self.name, missing, self.style) + f"; the data have no such column ({_listed(known)})"
            )


def is_coroutine(function: Callable[..., Any]) -> bool:
    """Return whether a function, or what an object is called by, is an ``async def``."""
    inner = called(function)
    return inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(type(inner).__call__)


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
            check(**_accepted(check, _settings(here, arguments)))
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
        prepare=(path, _accepted(resolve(path), _settings(here, arguments))) if path is not None else None,
    )


def _settings(function: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is set of a function beforehand, in partials and as its arguments."""
    inside = _settings(function.func, function.keywords) if isinstance(function, functools.partial) else {}
    return {**inside, **arguments}


def _check_weight(name: str, weight: float) -> None:
    if not math.isfinite(weight):
        raise UserError(f"Reward {name}: weight must be a finite number, not {weight}")


def _name(function: str | Callable[..., Any]) -> str:
    if isinstance(function, str):
        return function.rpartition(".")[2]
    inner = called(function)
    found = getattr(inner, "__name__", type(inner).__name__)
    return "lambda" if found == "<lambda>" else str(found)


def _parameters(name: str, function: Callable[..., Any]) -> Parameters:
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError) as error:
        message = f"Reward {name}: its signature cannot be read ({error}); wrap it in a Python function"
        raise UserError(message) from error


def _by_name(parameters: Parameters) -> Parameters:
    return [p for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]


def _everything_of(function: Callable[..., Any]) -> list[str]:
    return [p.name for p in _by_name(list(inspect.signature(function).parameters.values()))]


def _check_arguments(name: str, parameters: Parameters, arguments: Mapping[str, Any], style: Style) -> None:
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
        raise UserError(_needs(name, unnamed, style))


def _columns(parameters: Parameters, arguments: Mapping[str, Any], style: Style) -> list[str]:
    """Return the parameters that columns of the data must fill: those without a default that nothing else fills."""
    others = {*style.values, *style.tools, *arguments, "tokenizer", *(["trainer_state"] if style.all_columns else [])}
    return [p.name for p in _by_name(parameters) if p.default is p.empty and p.name not in others]


def _needs(name: str, missing: Sequence[str], style: Style) -> str:
    return (
        f"Reward {name} needs {', '.join(map(repr, missing))}: a reward function is called with {', '.join(style.always)} by "
        "keyword; set anything else under its arguments"
    )


def _listed(names: Collection[str]) -> str:
    return f"they have {', '.join(sorted(names))}" if names else "they have none beside prompt and answer"


def _accepted(function: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that a function has parameters for."""
    parameters = inspect.signature(function).parameters
    return {name: value for name, value in arguments.items() if name in parameters}

"""A reward function with its arguments: what it is called with, and what its calls say of each sample."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import cast

from rl_lightning.errors import UserError
from rl_lightning.rewards import tally
from rl_lightning.rewards.pickled import called
from rl_lightning.rewards.spec import Outcome, RewardSample
from rl_lightning.rewards.styles import ANSWERS, SAMPLE, Style, column
from rl_lightning.rewards.tally import Said

#: Samples in one call of a function that takes lists, at most; samples of one prompt stay together.
_MOST_IN_A_CALL = 64


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
    here: Callable[..., object]
    arguments: Mapping[str, object]
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
    prepare: tuple[str, dict[str, object]] | None = None

    @property
    def waits(self) -> bool:
        """Whether it is a coroutine function, of which one process makes many calls at a time."""
        return is_coroutine(self.here)

    def sent(self, tokenizer: object) -> str | Callable[..., object]:
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

    def keywords(self, samples: Sequence[RewardSample], step: int = 0) -> dict[str, object]:
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
        read: dict[str, object] = {
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
        shared: list[object] = values if isinstance(values, list) else [None] * count
        return [Outcome(outcome.kind, shared[place], outcome.error, whole[place]) for place in range(count)]

    def call_here(self, samples: Sequence[RewardSample]) -> list[Outcome]:
        """Call the function on all samples, in this process, where nothing stops it if it hangs.

        Raises:
            ValueError: if it returns another number of scores. What it raises is raised too.
        """
        values = list(cast("Iterable[object]", self.here(samples))) if samples else []
        if len(values) != len(samples):
            raise ValueError(f"Reward {self.name} returned {len(values)} scores for {len(samples)} samples")
        said = [tally.drain(), *(Said() for _ in samples[1:])]
        return [
            value if isinstance(value, Outcome) else Outcome("ok", value, None, one)
            for value, one in zip(values, said, strict=False)
        ]

    def answer_problem(self, answer: object) -> str | None:
        """Return what the function's ``check_answer`` finds wrong with a gold answer; None if nothing is, or if it has none."""
        check = getattr(called(self.here), "check_answer", None)
        if check is None:
            return None
        try:
            check(answer, **accepted(check, settings_of(self.here, self.arguments)))
        except ValueError as error:
            return f"{self.name}: {error}"
        return None

    def check_columns(self, rows: Iterable[Mapping[str, object]]) -> None:
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
                lacks(self.name, missing, self.style) + f"; the data have no such column ({_listed(known)})"
            )


def is_coroutine(function: Callable[..., object]) -> bool:
    """Return whether a function, or what an object is called by, is an ``async def``."""
    inner = called(function)
    return inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(type(inner).__call__)


def settings_of(function: Callable[..., object], arguments: Mapping[str, object]) -> dict[str, object]:
    """Return what is set of a function beforehand, in partials and as its arguments."""
    inside = settings_of(function.func, function.keywords) if isinstance(function, functools.partial) else {}
    return {**inside, **arguments}


def lacks(name: str, missing: Sequence[str], style: Style) -> str:
    """Return the message that nothing fills some parameters of a reward function."""
    return (
        f"Reward {name} needs {', '.join(map(repr, missing))}: a reward function is called with {', '.join(style.always)} by "
        "keyword; set anything else under its arguments"
    )


def _listed(names: Collection[str]) -> str:
    return f"they have {', '.join(sorted(names))}" if names else "they have none beside prompt and answer"


def accepted(function: Callable[..., object], arguments: Mapping[str, object]) -> dict[str, object]:
    """Return the arguments that a function has parameters for."""
    parameters = inspect.signature(function).parameters
    return {name: value for name, value in arguments.items() if name in parameters}

"""Binding a reward function to its arguments, with all checks that need no sample."""

from __future__ import annotations

import difflib
import inspect
import logging
import math
import pickle
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rl_lightning.errors import UserError
from rl_lightning.rewards import tally
from rl_lightning.rewards.resolve import resolve
from rl_lightning.rewards.spec import BatchReward, Outcome, RewardSample

_log = logging.getLogger(__name__)

#: What every reward function may take, besides its configured arguments.
SAMPLE_ARGUMENTS = ("prompt", "response", "answer", "metadata")


@dataclass(frozen=True)
class BoundReward:
    """A reward function with its weight and arguments, checked against its signature.

    Args:
        name: of its component in `Scores` and of its metric.
        weight: factor in the sum of rewards.
        function: the dotted path or callable that is sent to workers.
        here: the same, as a callable of this process.
        takes: which of `SAMPLE_ARGUMENTS` it takes.
        arguments: its configured arguments.
        in_process: it cannot be sent to a worker, and runs in this process.
        prepare: dotted path and arguments of a call that each worker makes once beforehand; None if there is none.
        batched: it is called once with all samples, not once for each.
    """

    name: str
    weight: float
    function: str | Callable[..., Any]
    here: Callable[..., Any]
    takes: tuple[str, ...]
    arguments: Mapping[str, Any]
    in_process: bool
    prepare: tuple[str, dict[str, Any]] | None
    batched: bool = False

    def keywords(self, sample: RewardSample) -> dict[str, Any]:
        """Return the keyword arguments to call the function with for a sample."""
        return {**{name: getattr(sample, name) for name in self.takes}, **self.arguments}

    def call_here(self, samples: Sequence[RewardSample], watch: Callable[[], None] | None = None) -> list[Outcome]:
        """Call the function on every sample, in this process, where nothing stops it if it hangs.

        Args:
            samples: what to call it on.
            watch: called before each sample; it may raise to stop.

        Raises:
            ValueError: if a batched function returns another number of scores. What a batched function raises is raised too;
                what another function raises is the outcome of that sample.
        """
        if not self.batched:
            return [self._call_on(sample, watch) for sample in samples]
        values = list(self.here(samples)) if samples else []
        if len(values) != len(samples):
            raise ValueError(f"Reward {self.name} returned {len(values)} scores for {len(samples)} samples")
        # The events that it counted belong to the batch; the first sample's outcome carries them.
        counts = [tally.drain(), *({} for _ in samples[1:])]
        return [Outcome("ok", value, None, count) for value, count in zip(values, counts, strict=False)]

    def _call_on(self, sample: RewardSample, watch: Callable[[], None] | None) -> Outcome:
        if watch is not None:
            watch()
        try:
            value, error = self.here(**self.keywords(sample)), None
        except Exception:
            value, error = None, traceback.format_exc()
        return Outcome("raised" if error else "ok", value, error, tally.drain())

    def answer_problem(self, answer: Any) -> str | None:
        """Return what the function's ``check_answer`` finds wrong with a gold answer; None if nothing is, or if it has none."""
        check = getattr(self.here, "check_answer", None)
        if check is None:
            return None
        try:
            check(answer, **_accepted(check, self.arguments))
        except ValueError as error:
            return f"{self.name}: {error}"
        return None


def bind_batch(reward: BatchReward) -> BoundReward:
    """Return a batched reward as a `BoundReward`.

    Raises:
        UserError: if its weight is not finite.
    """
    _check_weight(reward.name, reward.weight)
    arguments = dict(reward.arguments)
    return BoundReward(
        reward.name, reward.weight, reward.function, reward.function, (), arguments, True, None, batched=True
    )


def bind(
    function: str | Callable[..., Any], weight: float, name: str | None, arguments: Mapping[str, Any]
) -> BoundReward:
    """Resolve a reward function and check its arguments.

    Args:
        function: dotted path or callable.
        weight: factor in the sum of rewards.
        name: of its metric; from the function if None.
        arguments: keyword arguments beside those of the sample.

    Raises:
        UserError: in one line, if the function cannot be imported, or called with these arguments.
    """
    here = resolve(function) if isinstance(function, str) else function
    name = name or _name(function)
    _check_weight(name, weight)
    takes = _check_signature(name, here, arguments)
    check = getattr(here, "check_arguments", None)
    if check is not None:
        try:
            check(**_accepted(check, arguments))
        except ValueError as error:
            raise UserError(f"Reward {name}: {error}") from error
    path = getattr(here, "prepare", None)
    prepare = (path, _accepted(resolve(path), arguments)) if path is not None else None
    in_process = not isinstance(function, str) and not _travels(function)
    if in_process:
        _log.warning("Reward %s cannot be sent to a worker process, so nothing stops it if it hangs", name)
    return BoundReward(name, weight, function, here, takes, dict(arguments), in_process, prepare)


def _check_weight(name: str, weight: float) -> None:
    if not math.isfinite(weight):
        raise UserError(f"Reward {name}: weight must be a finite number, not {weight}")


def _name(function: str | Callable[..., Any]) -> str:
    if isinstance(function, str):
        return function.rpartition(".")[2]
    found = getattr(function, "__name__", type(function).__name__)
    return "lambda" if found == "<lambda>" else str(found)


def _check_signature(name: str, function: Callable[..., Any], arguments: Mapping[str, Any]) -> tuple[str, ...]:
    """Return which of `SAMPLE_ARGUMENTS` a function takes, after checking that it takes `arguments` and needs nothing else."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError) as error:
        message = f"Reward {name}: its signature cannot be read ({error}); wrap it in a Python function"
        raise UserError(message) from error
    by_name = [p for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    names = [p.name for p in by_name]
    takes_all = any(p.kind == p.VAR_KEYWORD for p in parameters)
    for argument in arguments:
        if argument in SAMPLE_ARGUMENTS:
            raise UserError(f"Reward {name}: {argument!r} comes from the sample and cannot be an argument")
        if argument not in names and not takes_all:
            known = [n for n in names if n not in SAMPLE_ARGUMENTS]
            near = difflib.get_close_matches(argument, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(known) or 'none'}"
            raise UserError(f"Reward {name} has no argument {argument!r}: {hint}")
    missing = [
        p.name
        for p in parameters
        if p.default is p.empty
        and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
        and (p.kind == p.POSITIONAL_ONLY or (p.name not in SAMPLE_ARGUMENTS and p.name not in arguments))
    ]
    if missing:
        raise UserError(
            f"Reward {name} needs {', '.join(map(repr, missing))}: a reward function is called with "
            f"{', '.join(SAMPLE_ARGUMENTS)} by keyword; set anything else under its arguments"
        )
    return SAMPLE_ARGUMENTS if takes_all else tuple(n for n in SAMPLE_ARGUMENTS if n in names)


def _accepted(function: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that a function has parameters for."""
    parameters = inspect.signature(function).parameters
    return {name: value for name, value in arguments.items() if name in parameters}


def _travels(function: Callable[..., Any]) -> bool:
    """Return whether a worker can load the function. It cannot if that is of ``__main__``, which is another module there."""
    try:
        return b"__main__" not in pickle.dumps(function)
    except Exception:
        return False

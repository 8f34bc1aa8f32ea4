"""How reward functions are called: by this package's own rules, for one sample or for lists, and by those of TRL and verl."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

from rl_lightning.rewards import tally
from rl_lightning.rewards.spec import RewardSample

#: Names by which functions written for other libraries ask for the gold answer, where the data have no such column.
ANSWERS = ("answer", "answers", "solution", "solutions", "ground_truth", "target", "gold", "reference", "label")

Value = Callable[[RewardSample], object]


@dataclass(frozen=True)
class Style:
    """A way to call a function by keywords.

    Args:
        name: of the style.
        batched: for lists of samples, not for one.
        values: parameter → what it is of a sample. A list of these where it is batched.
        always: the parameters that a function with ``**kwargs`` gets.
        all_columns: it gets every column of the data too, as far as it takes them.
        tools: parameter → what it is for every call in a worker.
        whole: a returned dict is a record with its value under ``score``, not parts to be added up.
    """

    name: str
    batched: bool
    values: Mapping[str, Value]
    always: tuple[str, ...]
    all_columns: bool = False
    tools: Mapping[str, object] = field(default_factory=dict)
    whole: bool = False

    def __reduce__(self) -> tuple[object, ...]:
        return _named, (self.name,)


_ONE: dict[str, Value] = {
    "prompt": lambda sample: sample.prompt,
    "response": lambda sample: sample.response,
    "answer": lambda sample: sample.answer,
    "metadata": lambda sample: sample.metadata,
    "messages": lambda sample: sample.messages,
    "prompt_ids": lambda sample: list(sample.prompt_ids),
    "response_ids": lambda sample: list(sample.response_ids),
}
#: Called with what it asks for of one sample; returns its reward.
SAMPLE = Style("sample", False, _ONE, ("prompt", "response", "answer", "metadata"))

#: Called with lists; returns a list.
LISTS = Style(
    "lists",
    True,
    _ONE | {"prompts": _ONE["prompt"], "responses": _ONE["response"], "answers": _ONE["answer"]},
    ("prompts", "responses", "answers", "metadata"),
)


def _is_conversation(sample: RewardSample) -> bool:
    return isinstance(sample.source, list)


def _completion(sample: RewardSample) -> str | list[dict[str, str]]:
    """Return a response as TRL gives it: a message where the prompt is a conversation, or all that was said in an episode."""
    if not _is_conversation(sample):
        return sample.response
    if sample.episode is not None:
        return cast("list[dict[str, str]]", sample.metadata["turns"])
    return [{"role": "assistant", "content": sample.response}]


#: TRL's GRPOTrainer: lists, every column of the data by its name, and messages where prompts are conversations.
TRL = Style(
    "TRL",
    True,
    {
        "prompts": lambda sample: sample.prompt if sample.source is None else sample.source,
        "completions": _completion,
        "completion_ids": _ONE["response_ids"],
        "prompt_ids": _ONE["prompt_ids"],
    },
    ("prompts", "completions", "completion_ids"),
    all_columns=True,
    tools={"log_extra": tally.note_each, "log_metric": tally.measure},
)

#: verl's `compute_score(data_source, solution_str, ground_truth, extra_info)`.
VERL = Style(
    "verl",
    False,
    {
        "data_source": lambda sample: sample.metadata.get("data_source"),
        "solution_str": _ONE["response"],
        "ground_truth": _ONE["answer"],
        "extra_info": lambda sample: sample.metadata.get("extra_info", sample.metadata),
    },
    ("data_source", "solution_str", "ground_truth", "extra_info"),
    whole=True,
)


def _named(name: str) -> Style:
    return next(style for style in (SAMPLE, LISTS, TRL, VERL) if style.name == name)


def style_of(parameters: Sequence[inspect.Parameter], batched: bool) -> Style:
    """Return how a function with these parameters is called.

    Args:
        parameters: of the function.
        batched: it takes lists, as its `RewardSpec` says.
    """
    names = {parameter.name for parameter in parameters}
    if "completions" in names:
        return TRL
    if {"solution_str", "ground_truth"} <= names:
        return VERL
    return LISTS if batched else SAMPLE


def column(name: str) -> Value:
    """Return what reads a column of the data; None where a row has none."""

    def read(sample: RewardSample) -> object:
        if name not in sample.metadata and name in ANSWERS:
            return sample.answer
        return sample.metadata.get(name)

    return read

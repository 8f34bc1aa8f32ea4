"""From rows to examples: each column is read by its role, and what is wrong with it is noted."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import cast

from rl_lightning.data.sources import values
from rl_lightning.data.sources.assembling import Assembler, Said, Values
from rl_lightning.data.sources.base import Example, Gold
from rl_lightning.data.sources.conversations import (
    conversation,
    dialogue,
    is_conversation,
    is_transcript,
    transcript,
)
from rl_lightning.data.sources.head import Row
from rl_lightning.data.sources.layout import Layout, option
from rl_lightning.data.sources.problems import Problems
from rl_lightning.data.sources.values import BadValue
from rl_lightning.rewards.grading.gold import marked_in_gold
from rl_lightning.text import Messages

#: What a text says that marks its answer.
_MARKS = ("####", "\\boxed")


class RowReader:
    """Turns rows of one layout into examples.

    Args:
        layout: of the rows.
        sparse: every dict in a row has every key that any dict of its column has, as Arrow stores them.
    """

    def __init__(self, layout: Layout, sparse: bool) -> None:
        self.layout = layout
        self.sparse = sparse
        readers: dict[str, Callable[[object], object]] = {
            "prompt": self._prompt,
            "messages": self._dialogue,
            "text": values.text,
            "response": self._written,
            "rejected": self._written,
            "answer": values.answer,
            "margin": values.margin,
            "label": values.label,
            "new_tokens": values.new_tokens,
            "tools": lambda value: values.without_nulls(values.tools(value)) if sparse else values.tools(value),
            "template": lambda value: values.without_nulls(values.mapping(value)) if sparse else values.mapping(value),
            "ground_truth": values.ground_truth,
            "solution": _marked,
            "system": values.text,
            "context": values.text,
            "history": self._history,
        }
        needed = layout.required | layout.named
        self._plan = [(role, column, readers[role], role in needed) for role, column in layout.roles.items()]
        self._assembler = Assembler(layout)

    def examples(self, name: str, rows: Iterable[tuple[str, Row]], problems: Problems) -> list[Example]:
        """Turn rows into examples.

        Args:
            name: of the file or data set, for problems of the whole.
            rows: pairs of location and row.
            problems: where bad rows are noted.

        Returns:
            One example for each good row, in order.

        Raises:
            UserError: if no row at all has a column.
        """
        awaited = {self.layout.roles[role]: option(role) for role in self.layout.required | self.layout.named}
        awaited |= dict.fromkeys(self.layout.metadata or (), "metadata_columns")
        examples, columns = [], dict.fromkeys(self.layout.columns)
        for location, row in rows:
            if awaited:
                columns |= dict.fromkeys(row)
                awaited = {column: asked for column, asked in awaited.items() if column not in row}
            example = self._example(location, row, problems)
            if example is not None:
                examples.append(example)
        absent = Problems()
        for column, asked in awaited.items():
            absent.add(name, f"no column {column!r} ({asked}): its columns are {', '.join(columns)}")
        # No row lacks it by mistake, so none can be dropped for it.
        absent.raise_if_any(f"{name} has rows that cannot be used:")
        return examples

    def _example(self, location: str, row: Row, problems: Problems) -> Example | None:
        """Return the example that a row makes; None if it makes none, which is noted."""
        before = len(problems)
        found: dict[str, object] = {}
        for role, column, reader, needed in self._plan:
            value = row.get(column)
            if not needed and (value is None or value == ""):
                continue
            if value is None and column not in row:
                problems.add(location, f"column {column!r} is missing")
                continue
            try:
                found[role] = reader(value)
            except BadValue as bad:
                problems.add(location, f"column {column!r} {bad}", f"column {column!r} {bad.kind}")
        if len(problems) > before:
            return None
        if not found.get("tools"):
            found["tools"] = self._own_tools(row)
        try:
            return self._assembler.example(location, row, cast(Values, found))
        except BadValue as bad:
            role = bad.role or next(role for role in ("messages", "response", "prompt") if role in self.layout.roles)
            column = self.layout.roles[role]
            problems.add(location, f"column {column!r} {bad}", f"column {column!r} {bad.kind}")
            return None

    def _own_tools(self, row: Row) -> object:
        """Return the tools that stand in the prompt's own column, as OpenAI's interface has it; None if none do."""
        prompt = row.get(self.layout.roles.get("prompt", ""))
        tools = prompt.get("tools") if isinstance(prompt, dict) else None
        return values.without_nulls(tools) if tools and self.sparse else tools

    def _prompt(self, value: object) -> Said:
        """Read a prompt: text, or chat messages of which the last is not the policy's own."""
        turns = self._turns(value)
        if turns is None:
            if not is_transcript(values.text(value)):
                return str(value)
            turns = transcript(value)
            if turns[-1]["role"] != "assistant" and not self.layout.transcript:
                return str(value)
        if turns[-1]["role"] == "assistant":
            raise BadValue("ends with a message of the assistant: leave the turn to be sampled out of the prompt")
        return turns

    def _dialogue(self, value: object) -> Messages:
        """Read a conversation."""
        if self.layout.transcript and isinstance(value, str):
            return transcript(value)
        return dialogue(value, self.sparse)

    def _written(self, value: object) -> Said:
        """Read a response: text, messages, or a transcript."""
        turns = self._turns(value)
        if turns is not None:
            return turns
        said = values.text(value)
        return transcript(said) if self.layout.transcript and is_transcript(said) else said

    def _turns(self, value: object) -> Messages | None:
        """Return the messages of a value, also of one that is JSON where rows hold messages; None if it is text."""
        if isinstance(value, list | dict) or (
            self.layout.conversational and isinstance(value, str) and is_conversation(value)
        ):
            return conversation(value, self.sparse)
        return None

    def _history(self, value: object) -> Messages:
        """Read earlier turns: messages, or a list of pairs of question and answer."""
        if is_conversation(value):
            return conversation(value, self.sparse)
        turns: Messages = []
        for pair in value if isinstance(value, list) else [value]:
            if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(said, str) for said in pair):
                raise BadValue("holds something that is no pair of question and answer")
            turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
        return turns


def _marked(value: object) -> Gold:
    """Return the answer that a solution marks; all of it if it marks none."""
    gold = values.answer(value)
    if not isinstance(gold, str) or not any(mark in gold for mark in _MARKS):
        return gold
    try:
        return marked_in_gold(gold).strip()
    except ValueError:  # a reward that compares with it says what is wrong
        return gold

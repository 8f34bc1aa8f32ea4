"""From rows to examples."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from rl_lightning.data.sources import values
from rl_lightning.data.sources.base import Example
from rl_lightning.data.sources.conversations import (
    conversation,
    dialogue,
    is_conversation,
    is_transcript,
    opening,
    transcript,
)
from rl_lightning.data.sources.head import Row
from rl_lightning.data.sources.layout import Layout, option
from rl_lightning.data.sources.problems import Problems
from rl_lightning.data.sources.splitting import plainly, split_dialogue, split_pair, split_texts
from rl_lightning.data.sources.values import BadValue
from rl_lightning.rewards.grading.gold import marked_in_gold
from rl_lightning.text import Message, Messages

#: What a text says that marks its answer.
_MARKS = ("####", "\\boxed")
#: Columns that are part of an example and are passed on to rewards nevertheless: reward functions ask for them by name.
_KEPT = {"solution", "reward_model"}
#: How Stanford's Alpaca writes an instruction for a policy without a chat template.
_ALPACA = (
    "Below is an instruction that describes a task{paired}. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n{given}### Response:\n"
)


class RowReader:
    """Turns rows of one layout into examples.

    Args:
        layout: of the rows.
        sparse: every dict in a row has every key that any dict of its column has, as Arrow stores them.
    """

    def __init__(self, layout: Layout, sparse: bool) -> None:
        self.layout = layout
        self.sparse = sparse
        readers: dict[str, Callable[[Any], Any]] = {
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
        named = {layout.roles[role] for role in layout.named}
        self._used = {*layout.roles.values(), *layout.told_twice} - (_KEPT - named)
        self._stanford = (layout.roles.get("prompt"), layout.roles.get("response")) == ("instruction", "output")

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
        before, found = len(problems), {}
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
        try:
            return self._assembled(location, row, found)
        except BadValue as bad:
            role = bad.role or next(role for role in ("messages", "response", "prompt") if role in self.layout.roles)
            column = self.layout.roles[role]
            problems.add(location, f"column {column!r} {bad}", f"column {column!r} {bad.kind}")
            return None

    # ------------------------------------------------------------------------------------------------------- assembling

    def _assembled(self, location: str, row: Row, found: dict[str, Any]) -> Example:
        """Return an example of the values of a row's columns, by role."""
        prompt, response, rejected, plain = self._sides(row, found)
        if "context" in self.layout.roles or self._stanford:
            prompt, plain = self._instruction(prompt, found.get("context"))
        if "system" in found or "history" in found:
            prompt, plain = _preceded(prompt, found.get("system"), found.get("history", [])), None
        template, tools = found.get("template", {}), found.get("tools") or self._own_tools(row)
        if tools:
            template = {**template, "tools": tools}
        return Example(
            prompt=prompt,
            answer=found.get("answer", found.get("ground_truth", found.get("solution"))),
            response=response,
            metadata=self._metadata(row),
            location=location,
            rejected=rejected,
            margin=found.get("margin"),
            label=found.get("label"),
            template=template,
            max_new_tokens=found.get("new_tokens"),
            plain=plain,
        )

    def _sides(self, row: Row, found: dict[str, Any]) -> tuple[Any, Any, Any, str | None]:
        """Return prompt, response, rejected response and the prompt as one text, None for what there is not."""
        if "text" in found:
            return None, found["text"], None, None
        if "messages" in found:
            asked, answered = split_dialogue(found["messages"])
            raw = row[self.layout.roles["messages"]]
            return asked, answered and plainly(answered), None, self._opening(raw, asked)
        prompt, response, rejected = found.get("prompt"), found.get("response"), found.get("rejected")
        if rejected is not None and (prompt is None or self.layout.repeated):
            return self._parted(row, prompt, response, rejected)
        plain = None
        if self.layout.transcript and prompt is not None:
            plain = row[self.layout.roles["prompt"]]
            plain = plain if isinstance(plain, str) else None
        if isinstance(response, list) and self.layout.repeated:
            response = _after(prompt, response)
        for side in (response, rejected):
            if isinstance(side, list) and side[0]["role"] != "assistant":
                raise BadValue("does not begin with the assistant's turn", "does not begin with the assistant's turn")
        return prompt, _plain_side(response), _plain_side(rejected), plain

    def _parted(self, row: Row, prompt: Any, chosen: Any, rejected: Any) -> tuple[Any, Any, Any, str | None]:
        """Return the sides of a pair whose responses hold the prompt too."""
        if isinstance(chosen, str) != isinstance(rejected, str):
            raise BadValue(
                "is text, and the rejected one is messages, or the other way round", "is of another kind than the other"
            )
        if isinstance(chosen, str):
            if prompt is None:
                return *split_texts(chosen, rejected), None
            if not (chosen.startswith(prompt) and rejected.startswith(prompt)):
                raise BadValue("does not begin with the prompt, as in other rows", "does not begin with the prompt")
            return prompt, chosen[len(prompt) :], rejected[len(prompt) :], None
        begun, better, worse = split_pair(chosen, rejected)
        if prompt is not None and not _is_asked(prompt, begun):
            raise BadValue("begins with something else than the prompt says", "begins with another prompt")
        raw = row[self.layout.roles["response"]]
        return begun, plainly(better), plainly(worse), self._opening(raw, begun)

    def _opening(self, raw: Any, prompt: Messages) -> str | None:
        """Return the beginning of a transcript, up to where the answer to its first turns begins; None for messages."""
        return opening(raw, len(prompt)) if self.layout.transcript and isinstance(raw, str) else None

    def _instruction(self, prompt: Any, context: str | None) -> tuple[Any, str | None]:
        """Return an instruction with the input that belongs to it; and as Alpaca writes it for a policy without a template."""
        given, paired = "", ""
        whole = prompt
        if context is not None:
            given, paired = f"### Input:\n{context}\n\n", ", paired with an input that provides further context"
            if isinstance(prompt, list):
                whole = [*prompt[:-1], {**prompt[-1], "content": f"{prompt[-1]['content']}\n\n{context}"}]
            else:
                whole = f"{prompt}\n\n{context}"
        if not self._stanford or isinstance(prompt, list):
            return whole, None
        return whole, _ALPACA.format(paired=paired, instruction=prompt, given=given)

    def _metadata(self, row: Row) -> Row:
        """Pick what is passed on to rewards."""
        if self.layout.metadata is not None:
            return {column: row.get(column) for column in self.layout.metadata}
        used = self._used
        return {column: value for column, value in row.items() if column not in used}

    # ---------------------------------------------------------------------------------------------------------- reading

    def _prompt(self, value: Any) -> str | Messages:
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

    def _dialogue(self, value: Any) -> Messages:
        """Read a conversation."""
        if self.layout.transcript and isinstance(value, str):
            return transcript(value)
        return dialogue(value, self.sparse)

    def _own_tools(self, row: Row) -> list[Any] | None:
        """Return the tools that stand in the prompt's own column, as OpenAI's interface has it; None if none do."""
        prompt = row.get(self.layout.roles.get("prompt", ""))
        tools = prompt.get("tools") if isinstance(prompt, dict) else None
        return values.without_nulls(tools) if tools and self.sparse else tools

    def _written(self, value: Any) -> str | Messages:
        """Read a response: text, messages, or a transcript."""
        turns = self._turns(value)
        if turns is not None:
            return turns
        value = values.text(value)
        return transcript(value) if self.layout.transcript and is_transcript(value) else value

    def _turns(self, value: Any) -> Messages | None:
        """Return the messages of a value, also of one that is JSON where rows hold messages; None if it is text."""
        if isinstance(value, list | dict) or (
            self.layout.conversational and isinstance(value, str) and is_conversation(value)
        ):
            return conversation(value, self.sparse)
        return None

    def _history(self, value: Any) -> Messages:
        """Read earlier turns: a list of pairs of question and answer."""
        turns: Messages = []
        for pair in value if isinstance(value, list) else [value]:
            if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(said, str) for said in pair):
                raise BadValue("holds something that is no pair of question and answer")
            turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
        return turns


def _marked(value: Any) -> Any:
    """Return the answer that a solution marks; all of it if it marks none."""
    gold = values.answer(value)
    if not isinstance(gold, str) or not any(mark in gold for mark in _MARKS):
        return gold
    try:
        return marked_in_gold(gold).strip()
    except ValueError:  # a reward that compares with it says what is wrong
        return gold


def _preceded(prompt: str | Messages, system: str | None, history: Messages) -> Messages:
    """Return a prompt as messages, with what goes before it."""
    turns: list[Message] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if system is None:
        return [*history, *turns]
    if turns[0]["role"] != "system":
        return [{"role": "system", "content": system}, *history, *turns]
    if turns[0]["content"].strip() != system.strip():
        raise BadValue("begins with another system message than the column for it holds", "has two system messages")
    return turns


def _is_asked(prompt: str | Messages, begun: Messages) -> bool:
    """Whether a prompt is what a conversation begins with, or its text one of the things that are said there."""
    if isinstance(prompt, str):
        return any(prompt.strip() == str(message["content"]).strip() for message in begun)
    return prompt == begun


def _after(prompt: Any, turns: Messages) -> Messages:
    """Return the turns of a conversation that follow the prompt."""
    ends = [
        place
        for place in range(1, len(turns))
        if _is_asked(prompt, turns[:place] if isinstance(prompt, list) else turns[place - 1 : place])
    ]
    if not ends:
        raise BadValue("does not begin with the prompt, as in other rows", "does not begin with the prompt")
    return turns[ends[0] :]


def _plain_side(side: str | Messages | None) -> str | Messages | None:
    return plainly(side) if isinstance(side, list) else side

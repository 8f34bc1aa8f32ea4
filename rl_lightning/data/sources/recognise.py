"""Recognising what rows hold, from the names of their columns and what stands in the first of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rl_lightning.data.sources.conversations import contents, conversation, is_conversation, is_transcript
from rl_lightning.data.sources.layout import Columns, Layout, option
from rl_lightning.data.sources.values import BadValue, label
from rl_lightning.errors import UserError

Row = dict[str, Any]

#: The roles that say what a row is.
_STRUCTURE = ("prompt", "messages", "text", "response", "rejected")

#: Names of columns, by what they hold; of several that are there, the first is read and the others must say the same.
_PROMPTS = ("prompt", "problem", "question", "instruction", "query", "input")
_RESPONSES = ("completion", "response", "output", "generated_solution", "solution")
_DIALOGUES = ("messages", "conversations", "conversation")
_ANSWERS = ("answer", "final_answer", "expected_answer", "gold_answer", "gold", "ground_truth")
_SYSTEMS = ("system", "system_prompt")
#: Text that belongs to the prompt, beside one that is called an instruction, a question or the like.
_CONTEXTS = ("input", "context")
#: What the question means nothing without, and no rule says how to write it.
_CHOICES = ("choices", "options")
#: What the chat template is given besides the messages.
_TEMPLATE = {"tools": "tools", "template": "chat_template_kwargs"}
_MEDIA = ("image", "images", "audio", "audios", "video", "videos")
_EXPECTED = (
    "messages (or conversations); prompt (or question, problem, instruction), alone or with completion (or response, output, "
    "solution), answer or label; chosen and rejected, with or without prompt; or text"
)


def recognise(name: str, rows: Sequence[Row], columns: Columns) -> Layout:
    """Return what rows hold.

    Args:
        name: of the file or data set, for messages.
        rows: the first ones.
        columns: those that were named by options, which decide.

    Raises:
        UserError: if that cannot be told, or can be told in two ways that contradict each other.
    """
    return _Recognition(name, rows, columns).layout()


#: Columns of which one at least must be there, unless options name others.
_TELLING = (*_PROMPTS, *_DIALOGUES, "chosen", "rejected", "text")


class _Recognition:
    """What is known of the first rows of a table."""

    def __init__(self, name: str, rows: Sequence[Row], columns: Columns) -> None:
        self.name = name
        self.rows = rows
        self.given = columns
        self.all = tuple(dict.fromkeys(column for row in rows for column in row))
        filled = {column for row in rows for column, value in row.items() if value is not None and value != ""}
        # A column without any value is none, unless there is nothing else to go by.
        filled = filled if filled.intersection(_TELLING) else set(self.all)
        self.free = [column for column in self.all if column in filled and column not in columns.named.values()]

    def layout(self) -> Layout:
        """Return what the rows hold."""
        roles = self._named_roles() if self.given.structural else self._recognised_roles()
        self._refuse_media(roles)
        required = {role for role in roles if role in ("prompt", "messages", "text", "response", "rejected", "label")}
        roles |= self._beside(roles)
        required |= {role for role in ("answer", "margin") if role in roles}
        named = frozenset(self.given.named)
        twice = frozenset() if self.given.structural else frozenset(self._told_twice(roles))
        turns = any(is_conversation(value) for role in _STRUCTURE for value in self._values(roles.get(role)))
        # A prompt that an option names is read as the text that it is.
        readable = [role for role in _STRUCTURE if role in roles and not ("prompt" in named and "prompt" in roles)]
        texts = not turns and any(is_transcript(value) for role in readable for value in self._values(roles[role]))
        metadata = None if self.given.metadata is None else tuple(self.given.metadata)
        return Layout(
            self._kind(roles),
            roles,
            frozenset(required),
            named,
            metadata,
            twice,
            turns,
            texts,
            self._repeats(roles),
            self.all,
        )

    # ----------------------------------------------------------------------------------------------------- what it is

    def _named_roles(self) -> dict[str, str]:
        """Return what the options say, and the prompt's column if they leave it out."""
        roles = {role: column for role, column in self.given.named.items() if role in _STRUCTURE}
        if "prompt" not in roles and not {"messages", "text"} & roles.keys():
            found = self._first(_PROMPTS)
            if found is not None:
                roles["prompt"] = found
            elif "rejected" not in roles:
                raise UserError(f"{self.name}: no column for the prompt among {', '.join(self.all)}: set prompt_column")
        return roles

    def _recognised_roles(self) -> dict[str, str]:
        """Return what the names of the columns say."""
        if {"completions", "labels"} <= set(self.free):
            raise UserError(
                f"{self.name}: steps with labels (completions, labels) are recognised, but nothing here learns from steps"
            )
        prompt, response, answered = self._first(_PROMPTS), self._first(_RESPONSES), self._first(_ANSWERS)
        dialogue = next((column for column in _DIALOGUES if any(map(_may_be_turns, self._values(column)))), None)
        if {"chosen", "rejected"} <= set(self.free):
            # LLaMA-Factory writes the turns before the pair into `conversations`.
            before = prompt or (dialogue if dialogue and not self._ends_answered(dialogue) else None)
            return {**({"prompt": before} if before else {}), "response": "chosen", "rejected": "rejected"}
        if prompt and response:
            return {"prompt": prompt, "response": response} | self._label()
        if dialogue:
            return {"messages": dialogue}
        if prompt in ("problem", "question") and answered == "answer" and self._all_text("answer"):
            return {"prompt": prompt, "response": "answer"}
        if prompt and not (prompt == "input" and "text" in self.free):
            return {"prompt": prompt}
        if "text" in self.free:
            return {"text": "text"}
        near = "" if not self.all else f" its columns are {', '.join(self.all)};"
        raise UserError(
            f"{self.name}: no shape of data is recognised:{near} expected {_EXPECTED}; rename columns or set options such as "
            'prompt_column, or write rows such as {"prompt": "1+2=", "answer": "3"}'
        )

    def _label(self) -> dict[str, str]:
        """Return the column `label`, if it says what responses are worth."""
        values = self._values("label") if "label" in self.free and self.given.label is None else []
        try:
            return {"label": "label"} if [label(value) for value in values] else {}
        except BadValue:  # a class, or whatever else
            return {}

    def _beside(self, roles: dict[str, str]) -> dict[str, str]:
        """Return what stands beside the prompt and the response."""
        found = {role: column for role, column in self.given.named.items() if role not in _STRUCTURE}
        taken = {*roles.values(), *found.values()}
        recognised = not self.given.structural
        if "answer" not in found and "text" not in roles and "rejected" not in roles:
            found |= self._gold(roles)
        if "rejected" in roles and "margin" in self.free and "margin" not in taken and recognised:
            found["margin"] = "margin"
        prompt = roles.get("prompt")
        # These may be empty in the first rows, and hold something in a later one.
        beside = [column for column in self.all if column not in taken]
        if recognised and prompt not in (None, "prompt"):
            self._refuse_choices()
            found |= dict([("context", column) for column in _CONTEXTS if column in beside][:1])
        if recognised and "history" in beside and all(isinstance(value, list) for value in self._values("history")):
            found["history"] = "history"
        if "text" not in roles:
            found |= dict([("system", column) for column in _SYSTEMS if column in beside][:1])
            found |= {role: column for role, column in _TEMPLATE.items() if column in beside}
        return found

    def _gold(self, roles: dict[str, str]) -> dict[str, str]:
        """Return where the gold answer is, if there is one."""
        response, free = roles.get("response"), [column for column in self.free if column not in roles.values()]
        found = next((column for column in _ANSWERS if column in free), None)
        if found is not None:
            return {"answer": found}
        if "reward_model" in free and any(map(_may_be_dict, self._values("reward_model"))):
            return {"ground_truth": "reward_model"}
        return (
            {"solution": response} if response in ("solution", "answer") and "response" not in self.given.named else {}
        )

    def _kind(self, roles: dict[str, str]) -> str:
        if "rejected" in roles:
            return "pairs"
        if "text" in roles:
            return "texts"
        if "messages" in roles:
            return "dialogues" if self._ends_answered(roles["messages"]) else "prompts"
        if "response" in roles:
            return "labelled" if "label" in roles or self.given.label is not None else "responses"
        return "prompts"

    # ------------------------------------------------------------------------------------------------ looking at rows

    def _first(self, names: Sequence[str]) -> str | None:
        return next((column for column in names if column in self.free), None)

    def _values(self, column: str | None) -> list[Any]:
        found = [row.get(column) for row in self.rows] if column is not None else []
        return [value for value in found if value is not None and value != ""]

    def _all_text(self, column: str) -> bool:
        return all(isinstance(value, str) for value in self._values(column))

    def _ends_answered(self, column: str) -> bool:
        """Whether a conversation in a column ends with the assistant's turn."""
        for value in self._values(column):
            try:
                if conversation(value)[-1]["role"] == "assistant":
                    return True
            except BadValue:
                continue  # it is reported when it is read
        return False

    def _repeats(self, roles: dict[str, str]) -> bool:
        """Whether the responses of every row begin with its prompt: both texts of a pair, or conversations."""
        if not {"prompt", "response"} <= roles.keys():
            return False
        written = [role for role in ("response", "rejected") if role in roles]
        sides = [[row.get(roles[role]) for role in ("prompt", *written)] for row in self.rows]
        whole = [side for side in sides if all(side)]
        if len(written) == 1 and not all(is_conversation(one) for _, one in whole):
            return False
        return bool(whole) and all(_begins_with(side, prompt) for prompt, *both in whole for side in both)

    def _told_twice(self, roles: dict[str, str]) -> Iterator[str]:
        """Yield the columns that say again what those of an example say.

        Raises:
            UserError: if one that could as well be the example says something else.
        """
        used = set(roles.values())
        for column in self.free:
            if column in used or column not in (*_TELLING, *_RESPONSES):
                continue
            if not all(self._says_the_same(row, column, used) for row in self.rows):
                structure = [column for role, column in roles.items() if role in _STRUCTURE]
                raise UserError(
                    f"{self.name}: two readings contradict each other: {' and '.join(structure)}, or {column}, which says something "
                    f"else; name the columns to read, such as {self._ways(roles, column)}"
                )
            yield column

    def _ways(self, roles: dict[str, str], column: str) -> str:
        one = next(role for role in _STRUCTURE if role in roles)
        other = (
            "messages"
            if column in _DIALOGUES
            else "text"
            if column == "text"
            else "prompt"
            if column in _PROMPTS
            else "response"
        )
        return f"{option(one)}: {roles[one]} or {option(other)}: {column}"

    def _says_the_same(self, row: Row, column: str, used: set[str]) -> bool:
        said = contents(row.get(column))
        known = [text for other in used for text in contents(row.get(other))]
        contained = all(any(text in whole for whole in known) for text in said)
        return contained or (column == "text" and all(text in row[column] for text in known))

    # ------------------------------------------------------------------------------------------------ what is refused

    def _refuse_media(self, roles: dict[str, str]) -> None:
        """Refuse images and the like beside the text, unless all columns were named."""
        for column in () if self.given.structural else _MEDIA:
            if column in self.free and self._values(column) and any(value for value in self._values(column)):
                raise UserError(
                    f"{self.name}: column {column!r} holds what is no text, and policies here read text alone; to leave it out, "
                    f"name the columns to read, such as {self._naming(roles)}"
                )

    def _refuse_choices(self) -> None:
        for column in _CHOICES:
            if column in self.free:
                raise UserError(
                    f"{self.name}: column {column!r} belongs to the question, and no rule says how to write it: write it into the "
                    "prompt, or name the columns to read without it, such as prompt_column"
                )

    def _naming(self, roles: dict[str, str]) -> str:
        return ", ".join(f"{option(role)}: {column}" for role, column in roles.items() if role in _STRUCTURE)


def _may_be_turns(value: Any) -> bool:
    return isinstance(value, list | dict) or (
        isinstance(value, str) and (value.lstrip()[:1] == "[" or is_transcript(value))
    )


def _may_be_dict(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, str) and value.lstrip().startswith("{"))


def _begins_with(side: Any, prompt: Any) -> bool:
    """Whether a response begins with its prompt."""
    if not is_conversation(side):
        return isinstance(side, str) and isinstance(prompt, str) and side.startswith(prompt) and side != prompt
    try:
        turns = conversation(side)
    except BadValue:
        return False
    return turns[0]["role"] != "assistant"

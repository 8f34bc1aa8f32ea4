"""Which column of a row becomes which part of an example."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields

from rl_lightning.data.sources.shape import Offer, Shape
from rl_lightning.errors import UserError
from rl_lightning.text import Message, Messages


@dataclass(frozen=True)
class Columns:
    """The columns that were named by options; None for one that is to be recognised.

    Args:
        prompt: holds text or chat messages.
        answer: holds the gold answer: text, a number, a truth value, a dict or a list of alternatives.
        response: holds an answer that someone wrote, as text or messages.
        rejected: holds a worse answer than the response.
        margin: holds a number, how much better the response is.
        label: holds a truth value or a number, what the response is worth.
        messages: holds conversations, prompts and answers together.
        text: holds texts to learn whole.
        new_tokens: holds caps on new tokens.
        metadata: columns to pass on to rewards, None where a row lacks one; None to pass on all the other columns.
    """

    prompt: str | None = None
    answer: str | None = None
    response: str | None = None
    rejected: str | None = None
    margin: str | None = None
    label: str | None = None
    messages: str | None = None
    text: str | None = None
    new_tokens: str | None = None
    metadata: list[str] | None = None

    def __post_init__(self) -> None:
        """Refuse columns that mean nothing without another, or contradict another."""
        for role, other in (("rejected", "response"), ("margin", "rejected"), ("label", "response")):
            column = getattr(self, role)
            # A margin or a label may stand beside columns that are recognised.
            if column is not None and getattr(self, other) is None and (role == "rejected" or self.structural):
                raise UserError(f"{option(role)} is set to {column!r} without {option(other)}: set that too")
        for whole in ("messages", "text"):
            others = [role for role in self.structural if role != whole]
            if whole in self.structural and others:
                raise UserError(
                    f"{option(whole)} is set, and {option(others[0])} too: it holds the whole example, so leave one out"
                )

    @property
    def structural(self) -> list[str]:
        """The roles named by options that say what the rows are; the others are recognised if there are none."""
        return [
            role for role in ("prompt", "response", "rejected", "messages", "text") if getattr(self, role) is not None
        ]

    @property
    def named(self) -> dict[str, str]:
        """Role → column, for those that were named."""
        roles = [field.name for field in fields(self) if field.name != "metadata"]
        return {role: getattr(self, role) for role in roles if getattr(self, role) is not None}


def option(role: str) -> str:
    """Return the option that names the column of a role."""
    return {"new_tokens": "max_new_tokens_column"}.get(role, f"{role}_column")


@dataclass(frozen=True)
class Layout:
    """What rows are, and where the parts of an example are in them.

    Args:
        kind: of the rows.
        roles: role → column; besides those of `Columns`: `system`, `tools`, `template`, `context` (text that belongs to the
            prompt), `history` (earlier turns), `ground_truth` (a dict that holds the gold answer) and `solution` (a text that
            marks the gold answer).
        required: roles that every row must fill.
        named: roles whose column was named by an option.
        metadata: columns to pass on to rewards; None for all that are no part of the example.
        told_twice: columns that say again what others say.
        conversational: prompt or responses are messages.
        transcript: they are conversations in one text.
        repeated: responses repeat the prompt.
        columns: all there are.
    """

    kind: str
    roles: dict[str, str]
    required: frozenset[str]
    named: frozenset[str] = frozenset()
    metadata: tuple[str, ...] | None = None
    told_twice: frozenset[str] = frozenset()
    conversational: bool = False
    transcript: bool = False
    repeated: bool = False
    columns: tuple[str, ...] = ()

    @property
    def shape(self) -> Shape:
        """What was understood, and what can be learnt from it."""
        name, *offered = _KINDS[self.kind]
        offers: set[Offer] = set(offered)  # type: ignore[arg-type]
        notes = ["conversational"] if self.conversational else []
        notes += ["transcripts"] if self.transcript else []
        if self.kind == "pairs" and ("prompt" not in self.roles or self.repeated):
            notes.append("implicit prompt" if "prompt" not in self.roles else "prompt repeated in both")
        if {"answer", "ground_truth", "solution"} & self.roles.keys():
            offers.add("answers")
            notes.append("gold answers")
        notes += [words for role, words in _NOTES.items() if role in self.roles]
        return Shape(name, frozenset(offers), tuple(notes), self.columns)

    def right_row(self) -> str:
        """Return an example of a right row, as JSON."""
        said = _SAID_TURNS if self.conversational else _SAID
        needed = {role: column for role, column in self.roles.items() if role in self.required or role in self.named}
        row: dict[str, object] = {}
        for role, column in needed.items():
            value = said.get(role, _SAID.get(role))
            if role in ("response", "rejected") and ("prompt" not in self.roles or self.repeated):
                value = _WHOLE[role] if self.conversational else f"1+2= {_SAID[role]}"
            row.setdefault(column, value)
        return json.dumps(row)


#: Kind → what it is called, and what it offers.
_KINDS: dict[str, tuple[str, ...]] = {
    "pairs": ("preference pairs", "pairs"),
    "labelled": ("labelled responses", "prompts", "responses", "labels"),
    "responses": ("demonstrations", "prompts", "responses"),
    "dialogues": ("demonstrations", "prompts", "responses"),
    "prompts": ("prompts", "prompts"),
    "texts": ("texts to learn whole", "texts"),
}
_NOTES = {
    "system": "system messages",
    "tools": "tools",
    "context": "prompts with an input",
    "new_tokens": "own caps on new tokens",
}

_ASKED: Message = {"role": "user", "content": "1+2="}
_SAID: dict[str, object] = {
    "prompt": "1+2=",
    "answer": "3",
    "response": "It is 3.",
    "rejected": "It is 4.",
    "margin": 1.0,
    "label": True,
    "messages": [_ASKED, {"role": "assistant", "content": "It is 3."}],
    "text": "One and two are three.",
    "new_tokens": 64,
    "ground_truth": {"style": "rule", "ground_truth": "3"},
    "solution": "It is \\boxed{3}.",
}
_TURNS: dict[str, Messages] = {
    "prompt": [_ASKED],
    "response": [{"role": "assistant", "content": "It is 3."}],
    "rejected": [{"role": "assistant", "content": "It is 4."}],
}
_SAID_TURNS: dict[str, object] = {**_SAID, **_TURNS}
_WHOLE = {role: [_ASKED, *_TURNS[role]] for role in ("response", "rejected")}

"""What rows hold that cannot be read, told by the columns of the first of them, in one sentence."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from rl_lightning.data.sources.conversations import is_conversation
from rl_lightning.data.sources.head import CONTEXTS, TELLING, Head, plain
from rl_lightning.data.sources.layout import option
from rl_lightning.errors import UserError

#: The roles that say what a row is.
STRUCTURE = ("prompt", "messages", "text", "response", "rejected")

#: What the question means nothing without, and no rule says how to write it.
_CHOICES = ("choices", "options")
#: Choices with a column each: `A`, `opa`, `option_a`, `choice1`.
_CHOICE = re.compile(r"(op|opt|option|choice)?_?[a-d1-4]")
_MEDIA = ("image", "images", "audio", "audios", "video", "videos")
_PANDAS = "this is a table of pandas in one object: write df.to_json(path, orient='records', lines=True)"
#: Columns beside `text` that may say what is to be written to it.
_COUNTERPARTS = ("code", "summary", "answer")
_EXPECTED = (
    "messages (or conversations); prompt (or question, problem, instruction), alone or with completion (or response, output, "
    "solution), answer or label; chosen and rejected, with or without prompt; or text"
)


def refuse_steps(head: Head) -> None:
    """Refuse rows that label the steps of an answer, and rows that are single messages."""
    if head.first(("completions",)) and head.first(("labels",)):
        raise UserError(
            f"{head.name}: steps with labels (completions, labels) are recognised, but nothing here learns from steps"
        )
    said = head.first(("text", "content"))
    if said and head.first(("role",)) and not head.first([name for name in TELLING if name != "text"]):
        raise UserError(
            f"{head.name}: each row is one message (role, {said}): write each conversation as one row, such as "
            '{"messages": [{"role": "user", "content": "1+2="}, {"role": "assistant", "content": "3"}]}'
        )


def no_shape(head: Head) -> UserError:
    """Return what is said of rows whose columns say nothing."""
    near = "" if not head.all else f" its columns are {', '.join(head.all)};"
    inner = next((column for column in head.all if _is_table(head, column)), None)
    if inner is not None:
        return UserError(
            f"{head.name}: it holds one object whose {inner!r} is a list of rows: write that list alone, or one row a line"
        )
    if all(column.isdigit() for column in head.all) or {"columns", "index", "data"} == set(head.all):
        near += f" {_PANDAS};"
    return UserError(
        f"{head.name}: no shape of data is recognised:{near} expected {_EXPECTED}; rename columns or set options such as "
        'prompt_column, or write rows such as {"prompt": "1+2=", "answer": "3"}'
    )


def _is_table(head: Head, column: str) -> bool:
    """Whether the only row, which has little else, holds a list of rows in a column."""
    value = head.rows[0].get(column)
    rows = value if len(head.rows) == 1 and len(head.all) <= 3 and isinstance(value, list) else []
    return bool(rows) and all(isinstance(row, dict) and any(plain(key) in TELLING for key in row) for row in rows)


def refuse_unreadable(head: Head, roles: Mapping[str, str]) -> None:
    """Refuse a column that holds neither text nor messages in any row."""
    for role, column in roles.items():
        values = head.values(column) if role in STRUCTURE else []
        lists = not head.given.structural and role != "messages" and all(map(_is_list_of_texts, values))
        if values and (lists or not any(_is_readable(value, role) for value in values)):
            held = _described(values[0])
            raise UserError(
                f'{head.name}: column {column!r} holds {held}, and no text and no messages ({{"role": ..., "content": ...}}): '
                f"write it as one of these, or name another column: {option(role)}"
            )


def _is_readable(value: object, role: str) -> bool:
    if isinstance(value, dict):
        return is_conversation(value)
    if isinstance(value, list) and value and not isinstance(value[0], dict | str):
        return False
    if isinstance(value, list) and value and isinstance(value[0], str):
        return role == "messages"
    # A message without a role is one bad message; what else is wrong with a value is said of its row.
    return True


def _is_list_of_texts(value: object) -> bool:
    """Whether a text is the JSON of a list of texts, as tables write several turns."""
    if not isinstance(value, str) or value.lstrip()[:1] != "[":
        return False
    try:
        inner = json.loads(value)
    except (ValueError, RecursionError):
        return False
    return isinstance(inner, list) and bool(inner) and all(isinstance(one, str) for one in inner)


def _described(value: object) -> str:
    if isinstance(value, str):
        return "a list of texts as JSON"
    if isinstance(value, dict):
        keys = ", ".join(map(str, list(value)[:4]))
        by_columns = all(str(key).isdigit() for key in value)
        hint = f" ({_PANDAS})" if by_columns else ""
        return f"a dict with the keys {keys}{hint}"
    return f"a list of {type(value[0]).__name__}" if isinstance(value, list) else f"a {type(value).__name__}"


def refuse_media(head: Head, roles: Mapping[str, str]) -> None:
    """Refuse images and the like beside the text, unless all columns were named."""
    for name in () if head.given.structural else _MEDIA:
        column = head.first((name,))
        if column is not None and any(head.values(column)):
            raise UserError(
                f"{head.name}: column {column!r} holds what is no text, and policies here read text alone; to leave it out, "
                f"name the columns to read, such as {naming(roles)}"
            )


def refuse_loose_ends(head: Head, prompt: str, beside: Sequence[str]) -> None:
    """Refuse what belongs to a question and cannot be written into it: choices, and a context that is no text.

    Args:
        head: the first rows.
        prompt: the column of the question.
        beside: the columns that are nothing yet.
    """
    single = [column for column in beside if _CHOICE.fullmatch(plain(column)) and head.values(column)]
    choices = head.first(_CHOICES) or (", ".join(single) if len(single) > 2 else None)
    if choices is not None:
        raise UserError(
            f"{head.name}: column {choices!r} belongs to the question, and no rule says how to write it: write it into the "
            f"prompt, or name the columns to read without it, such as prompt_column: {prompt}"
        )
    context = head.first([name for name in CONTEXTS if name != prompt], beside)
    values = head.values(context)
    if values and not any(isinstance(value, str) for value in values):
        raise UserError(
            f"{head.name}: column {context!r} belongs to the prompt, and holds {_described(values[0])}: write it as text, or name "
            f"the columns to read without it, such as prompt_column: {prompt}"
        )


def refuse_halves(head: Head, text: str) -> None:
    """Refuse a text beside which there is what may be written to it."""
    other = head.first(_COUNTERPARTS)
    if other is not None and head.all_text(other):
        raise UserError(
            f"{head.name}: column {text!r} may be a text to learn whole, or a prompt, to which {other!r} is the response: set "
            f"text_column: {text}, or prompt_column: {text} and response_column: {other}"
        )


def refuse_elsewhere(head: Head) -> None:
    """Refuse pairs of texts without a prompt beside which there are messages: the prompt may be there."""
    for column in head.free:
        if any(map(is_conversation, head.values(column))):
            raise UserError(
                f"{head.name}: column {column!r} holds messages, and the pair is of texts without a prompt: if they are what was "
                f"asked, set prompt_column: {column}, response_column and rejected_column; to learn from the pair alone, the last two"
            )


def naming(roles: Mapping[str, str]) -> str:
    """Return the options that name the columns of an example, as a user sets them."""
    return ", ".join(f"{option(role)}: {column}" for role, column in roles.items() if role in STRUCTURE)

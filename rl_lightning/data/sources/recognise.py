"""Recognising what rows hold, from the names of their columns and what stands in the first of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rl_lightning.data.sources.conversations import contents, conversation, is_conversation, is_transcript
from rl_lightning.data.sources.golds import refuse_contradiction
from rl_lightning.data.sources.head import (
    ANSWERS,
    CONTEXTS,
    DIALOGUES,
    HISTORIES,
    PAIRS,
    PROMPTS,
    RESPONSES,
    SYSTEMS,
    TELLING,
    TEMPLATE,
    Head,
    Row,
    plain,
)
from rl_lightning.data.sources.layout import Columns, Layout, option
from rl_lightning.data.sources.refusals import (
    STRUCTURE,
    no_shape,
    refuse_elsewhere,
    refuse_halves,
    refuse_loose_ends,
    refuse_media,
    refuse_steps,
    refuse_unreadable,
)
from rl_lightning.data.sources.values import BadValue, label
from rl_lightning.errors import UserError


def recognise(name: str, rows: Sequence[Row], columns: Columns) -> Layout:
    """Return what rows hold.

    Args:
        name: of the file or data set, for messages.
        rows: the first ones.
        columns: those that were named by options, which decide.

    Raises:
        UserError: if that cannot be told, or can be told in two ways that contradict each other.
    """
    head = Head(name, rows, columns)
    roles = _named_roles(head) if columns.structural else _recognised_roles(head)
    refuse_media(head, roles)
    refuse_unreadable(head, roles)
    required = {role for role in roles if role in (*STRUCTURE, "label")}
    roles |= _beside(head, roles)
    required |= {role for role in ("answer", "margin") if role in roles}
    named = frozenset(columns.named)
    twice = frozenset() if columns.structural else frozenset(_told_twice(head, roles))
    turns = any(is_conversation(value) for role in STRUCTURE for value in head.values(roles.get(role)))
    # A prompt that an option names is read as the text that it is.
    readable = [role for role in STRUCTURE if role in roles and not ("prompt" in named and "prompt" in roles)]
    texts = not turns and any(is_transcript(value) for role in readable for value in head.values(roles[role]))
    if "rejected" in roles and "prompt" not in roles and not (turns or texts or columns.structural):
        refuse_elsewhere(head)
    return Layout(
        kind=_kind(head, roles),
        roles=roles,
        required=frozenset(required),
        named=named,
        metadata=None if columns.metadata is None else tuple(columns.metadata),
        told_twice=twice,
        conversational=turns or ("messages" in roles and not texts),
        transcript=texts,
        repeated=_repeats(head, roles),
        columns=head.all,
    )


# --------------------------------------------------------------------------------------------------------- what it is


def _named_roles(head: Head) -> dict[str, str]:
    """Return what the options say, and the prompt's column if they leave it out."""
    roles = {role: column for role, column in head.given.named.items() if role in STRUCTURE}
    if "prompt" not in roles and not {"messages", "text"} & roles.keys():
        found = head.prompt()
        if found is not None:
            roles["prompt"] = found
        elif "rejected" not in roles:
            raise UserError(f"{head.name}: no column for the prompt among {', '.join(head.all)}: set prompt_column")
    return roles


def _recognised_roles(head: Head) -> dict[str, str]:
    """Return what the names of the columns say."""
    refuse_steps(head)
    prompt, response, dialogue, text = head.prompt(), _response(head), head.turns(), head.first(("text",))
    pairs = ([head.first((name,)) for name in pair] for pair in PAIRS)
    pair = next((pair for pair in pairs if all(pair)), None)
    if pair is not None:
        # LLaMA-Factory writes the turns before the pair into `conversations`.
        before = prompt or (dialogue if dialogue and not head.ends_answered(dialogue) else None)
        return {**({"prompt": before} if before else {}), "response": str(pair[0]), "rejected": str(pair[1])}
    if prompt and response:
        return {"prompt": prompt, "response": response} | _label(head)
    if dialogue:
        return {"messages": dialogue} | (_label(head) if head.ends_answered(dialogue) else {})
    answered = head.first(ANSWERS)
    if prompt and plain(prompt) != "prompt" and answered and plain(answered) == "answer" and head.all_text(answered):
        return {"prompt": prompt, "response": answered} | _label(head)
    if prompt and not (plain(prompt) == "input" and text):
        return {"prompt": prompt}
    if text:
        refuse_halves(head, text)
        return {"text": text}
    raise no_shape(head)


def _response(head: Head) -> str | None:
    """Return the column of responses; None if there is none. A target may be a number to reach, which is no response."""
    names = [name for name in RESPONSES if not name.startswith("target")]
    found = head.first(names) or head.first(RESPONSES)
    return found if found is not None and (plain(found) in names or head.all_text(found)) else None


def _label(head: Head) -> dict[str, str]:
    """Return the column `label`, if it says what responses are worth."""
    column = head.first(("label",)) if head.given.label is None else None
    try:
        return {"label": str(column)} if [label(value) for value in head.values(column)] else {}
    except BadValue:  # a class, or whatever else
        return {}


def _beside(head: Head, roles: dict[str, str]) -> dict[str, str]:
    """Return what stands beside the prompt and the response."""
    found = {role: column for role, column in head.given.named.items() if role not in STRUCTURE}
    taken = {*roles.values(), *found.values()}
    recognised = not head.given.structural
    if "answer" not in found and "text" not in roles and "rejected" not in roles:
        found |= _gold(head, roles)
    margin = head.first(("margin",)) if "rejected" in roles and recognised else None
    if margin is not None and margin not in taken:
        found["margin"] = margin
    prompt = roles.get("prompt")
    # These may be empty in the first rows, and hold something in a later one.
    beside = [column for column in head.all if column not in taken]
    if recognised and prompt is not None:
        found |= _history(head, beside)
        beside = [column for column in beside if column not in found.values()]
        if plain(prompt) != "prompt":
            refuse_loose_ends(head, prompt, beside)
            found |= _column(head, "context", CONTEXTS, beside)
    if "text" not in roles:
        found |= _column(head, "system", SYSTEMS, beside)
        for role, names in TEMPLATE.items():
            found |= _column(head, role, names, beside)
    return found


def _column(head: Head, role: str, names: Sequence[str], among: Sequence[str]) -> dict[str, str]:
    found = head.first(names, among)
    return {} if found is None else {role: found}


def _history(head: Head, among: Sequence[str]) -> dict[str, str]:
    """Return the column that holds the turns before the prompt, if one does."""
    for name in HISTORIES:
        column = head.first((name,), among)
        values = head.values(column)
        earlier = name == "history" and all(isinstance(value, list) for value in values)
        if column is not None and (earlier or any(map(is_conversation, values))):
            return {"history": column}
    return {}


def _gold(head: Head, roles: dict[str, str]) -> dict[str, str]:
    """Return where the gold answer is, if there is one."""
    response, free = roles.get("response"), [column for column in head.free if column not in roles.values()]
    columns = [head.first((name,), free) for name in ANSWERS]
    golds = {column: "answer" for column in columns if column is not None}
    judged = head.first(("reward_model",), free)
    if judged is not None and any(map(_may_be_dict, head.values(judged))):
        golds[judged] = "ground_truth"
    if golds:
        first, *others = golds
        for other in others:
            refuse_contradiction(head, first, other)
        return {golds[first]: first}
    solved = response is not None and plain(response) in ("solution", "answer") and "label" not in roles
    if response is None or not solved or "response" in head.given.named:
        return {}
    return {"solution": response}


def _kind(head: Head, roles: dict[str, str]) -> str:
    if "rejected" in roles:
        return "pairs"
    if "text" in roles:
        return "texts"
    if "messages" in roles and not head.ends_answered(roles["messages"]):
        return "prompts"
    if not {"messages", "response"} & roles.keys():
        return "prompts"
    labelled = "label" in roles or head.given.label is not None
    return "labelled" if labelled else "dialogues" if "messages" in roles else "responses"


# ----------------------------------------------------------------------------------------------------- looking at rows


def _repeats(head: Head, roles: dict[str, str]) -> bool:
    """Whether the responses of every row begin with its prompt: both texts of a pair, or conversations."""
    if not {"prompt", "response"} <= roles.keys():
        return False
    written = [role for role in ("response", "rejected") if role in roles]
    sides = [[row.get(roles[role]) for role in ("prompt", *written)] for row in head.rows]
    whole = [side for side in sides if all(side)]
    if len(written) == 1 and not all(is_conversation(one) for _, one in whole):
        return False
    return bool(whole) and all(_begins_with(side, prompt) for prompt, *both in whole for side in both)


def _told_twice(head: Head, roles: dict[str, str]) -> Iterator[str]:
    """Yield the columns that say again what those of an example say.

    Raises:
        UserError: if one that could as well be the example says something else.
    """
    used = set(roles.values())
    # A pair with a prompt cannot be read otherwise: another answer to it is one that was not compared.
    whole = "rejected" in roles and ("prompt" in roles or any(map(is_conversation, head.values(roles["rejected"]))))
    for column in head.free:
        name = plain(column)
        if column in used or name not in (*TELLING, *RESPONSES) or not any(map(contents, head.values(column))):
            continue
        if all(_says_the_same(row, column, used) for row in head.rows):
            yield column
        elif not (whole and name in (*DIALOGUES, *RESPONSES)) and not name.startswith("target"):
            structure = [column for role, column in roles.items() if role in STRUCTURE]
            raise UserError(
                f"{head.name}: two readings contradict each other: {' and '.join(structure)}, or {column}, which says something "
                f"else; name the columns to read, such as {_ways(roles, column)}"
            )


def _ways(roles: dict[str, str], column: str) -> str:
    """Return the options that choose between what was recognised and a column that says something else."""
    role = next(role for role in STRUCTURE if role in roles)
    one, name = f"{option(role)}: {roles[role]}", plain(column)
    if name in DIALOGUES:
        return f"{one} or messages_column: {column}"
    if name in PROMPTS:
        return f"{one} or prompt_column: {column}"
    if name != "text":
        return f"{one} or response_column: {column}"
    together = f", or both: {one}, response_column: {column}" if role == "prompt" and "response" not in roles else ""
    return f"{one} or text_column: {column}{together}"


def _says_the_same(row: Row, column: str, used: set[str]) -> bool:
    said = contents(row.get(column))
    known = [text for other in used for text in contents(row.get(other))]
    contained = all(any(text in whole for whole in known) for text in said)
    whole = plain(column) in ("text", "prompt")  # may write the example out, as Alpaca's does
    return contained or (whole and all(text in str(row[column]) for text in known))


def _may_be_dict(value: object) -> bool:
    return isinstance(value, dict) or (isinstance(value, str) and value.lstrip().startswith("{"))


def _begins_with(side: object, prompt: object) -> bool:
    """Whether a response begins with its prompt."""
    if not is_conversation(side):
        return isinstance(side, str) and isinstance(prompt, str) and side.startswith(prompt) and side != prompt
    try:
        turns = conversation(side)
    except BadValue:
        return False
    return turns[0]["role"] != "assistant"

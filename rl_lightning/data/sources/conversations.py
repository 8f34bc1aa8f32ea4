"""Reading conversations, however data sets write them, and where in them the prompt ends."""

from __future__ import annotations

import json
import re
from typing import TypeGuard

from rl_lightning.data.sources.values import BadValue, parsed, text, without_nulls
from rl_lightning.text import Message, Messages, has_lone_surrogate

#: What data sets call those who speak → what chat templates call them.
_ROLES = {
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
}
_KNOWN = ("system", "developer", "user", "assistant", "tool", "function", "ipython")
#: Keys besides `content` that give a message something to say.
_SUBSTANCE = ("tool_calls", "reasoning_content", "thinking")
#: What those two are called who speak in one dict, in data sets that write a question and its answer into one.
_EXCHANGES = (
    ("input", "output"),
    ("human", "assistant"),
    ("user", "assistant"),
    ("instruction", "output"),
    ("question", "answer"),
)
_MEDIA = ("image", "audio", "video")
_TURN = re.compile(r"(?:\A|\n\n)\s*(Human|Assistant):")


def is_conversation(value: object) -> bool:
    """Whether a value is a list of messages, or one message, or a dict with ``messages``, or the JSON of such a list."""
    if isinstance(value, dict):
        return is_conversation(value["messages"]) if "messages" in value else _speaks(value)
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return False
    return isinstance(value, list) and bool(value) and _is_turn(value[0])


def _is_turn(value: object) -> bool:
    return isinstance(value, dict) and bool(_speaks(value) or _exchange(value))


def dialogue(value: object, sparse: bool = False) -> Messages:
    """Read a whole conversation: see `conversation`; also one of texts alone, which begins with the user and goes to and fro.

    Turns of the assistant that are not to be learnt keep their ``weight`` of 0.
    """
    if isinstance(value, list) and value and all(isinstance(one, str) for one in value):
        value = [{"role": ("user", "assistant")[place % 2], "content": said} for place, said in enumerate(value)]
    return conversation(value, sparse, weighed=True)


def conversation(value: object, sparse: bool = False, weighed: bool = False) -> Messages:
    """Read a list of messages, with ``role`` and ``content`` or ``from`` and ``value``, or the JSON of one.

    A dict of two speakers, such as ``{"input": ..., "output": ...}``, is two messages.

    Args:
        value: the list; or a dict that holds it under ``messages``.
        sparse: every dict has every key that any of its column has, as Arrow stores them.
        weighed: turns of the assistant may have a ``weight`` of 0, and keep it.
    """
    value = parsed(value) if isinstance(value, str) and value.strip() else value
    if value is None:
        raise BadValue("is null")
    if isinstance(value, dict):
        value = value.get("messages", [value])
    if not isinstance(value, list):
        raise BadValue(f"is of type {type(value).__name__}, not a list of messages")
    if not value:
        raise BadValue("is empty")
    turns = [turn for one in value for turn in _turns(one)]
    return [_message(one, number, sparse, weighed) for number, one in enumerate(turns, start=1)]


def _turns(message: object) -> list[object]:
    """Return the messages in a dict of two speakers; anything else alone."""
    if not isinstance(message, dict) or _speaks(message):
        return [message]
    speakers = _exchange(message)
    if speakers is None:
        return [message]
    roles = zip(("user", "assistant"), speakers, strict=True)
    return [{"role": role, "content": message[speaker]} for role, speaker in roles]


def _exchange(message: dict[str, object]) -> tuple[str, str] | None:
    """Return what the speakers of a dict of two are called; None if it is none."""
    return next((pair for pair in _EXCHANGES if all(speaker in message for speaker in pair)), None)


def _speaks(message: dict[str, object]) -> bool:
    return bool(message.get("role") or message.get("from"))


def _message(message: object, number: int, sparse: bool, weighed: bool) -> Message:
    """Read the message of a number, counted from 1."""
    if not isinstance(message, dict):
        raise _bad(
            number, f"of type {type(message).__name__}, not one with role and content", "something that is no message"
        )
    # Parquet gives every message every key that any message has.
    message = {key: inner for key, inner in message.items() if inner is not None}
    speaker, said = ("from", "value") if "from" in message and "role" not in message else ("role", "content")
    role = message.pop(speaker, None)
    if not isinstance(role, str) or not role.strip():
        raise _bad(number, f"without {speaker}") if role in (None, "") else _no_text(number, speaker, role)
    named = role.strip().lower()
    if speaker == "from" and named not in _ROLES and named not in _KNOWN:
        raise _bad(number, f"from {role!r}, and no role is known by that name", "an unknown role")
    content = message.pop(said, None)
    if not _is_learnt(message, number, own := _ROLES.get(named, named) == "assistant", weighed) and own:
        message["weight"] = 0
    rest = {key: without_nulls(inner) if sparse else inner for key, inner in message.items()}
    unsaid = named == "system" and content == ""  # no instruction, said on purpose
    content = "" if content is None else _content(content, number, said)
    if named in ("function_call", "tool_call"):
        rest["tool_calls"], content = [{"type": "function", "function": _call(content, number, named)}], ""
    elif "function_call" in rest and "tool_calls" not in rest:  # the older form of OpenAI's interface
        rest["tool_calls"] = _calls([{"type": "function", "function": rest.pop("function_call")}], number)
    elif "tool_calls" in rest:
        rest["tool_calls"] = _calls(rest["tool_calls"], number)
    if not (content.strip() or unsaid or any(rest.get(key) for key in _SUBSTANCE)):
        raise _bad(number, f"without {said}")
    for key, inner in rest.items():
        if isinstance(inner, str) and has_lone_surrogate(inner):
            raise _surrogate(number, key)
    return {"role": _ROLES.get(named, named if named in _KNOWN else role), "content": content, **rest}


def _is_learnt(message: dict[str, object], number: int, own: bool, weighed: bool) -> bool:
    """Take from a message what says whether it is learnt: `weight`, 1 or 0, or true or false as `loss` or `train`.

    Args:
        message: loses these keys.
        number: of the message.
        own: the assistant says it; what others say is not learnt anyway.
        weighed: turns of the assistant may be left out.
    """
    flags = [message.pop(key) for key in ("loss", "train") if isinstance(message.get(key), bool)]
    weight = message.pop("weight", int(all(flags)))
    if weight not in ((0, 1) if weighed or not own else (1,)):
        what = "a turn is learnt or not, 1 or 0"
        if not weighed:
            what = "weights are read in whole conversations alone, so leave it out"
        raise _bad(number, f"with the weight {weight}: {what}", "a weight that cannot be heeded")
    return weight != 0


def _content(content: object, number: int, key: str) -> str:
    """Return the text of a message; parts are joined, and what is no text is refused by name."""
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        content = "".join(_part(part, number) for part in content)
    if not isinstance(content, str):
        raise _no_text(number, key, content)
    if has_lone_surrogate(content):
        raise _surrogate(number, key)
    return content


def _part(part: dict[str, object], number: int) -> str:
    kind = str(part.get("type") or "text")
    medium = next((medium for medium in _MEDIA if medium in kind), None)
    if medium is not None:
        raise _bad(number, f"with {medium}: policies here read text alone", medium)
    if not isinstance(part.get("text"), str):
        raise _bad(number, f"with a part of type {kind!r} that has no text", "a part without text")
    return str(part["text"])


def _calls(calls: object, number: int) -> list[object]:
    """Read tool calls; arguments that are JSON text become the dict that chat templates write."""
    calls = _inner(calls, number)
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise _bad(number, "whose tool_calls are no list of calls", "tool_calls that are no list of calls")
    found: list[object] = []
    for call in calls:
        function = call.get("function")
        if isinstance(function, dict):
            found.append({**call, "function": _with_arguments(function, number)})
        else:
            found.append(_with_arguments(call, number))
    return found


def _call(content: str, number: int, named: str) -> dict[str, object]:
    call = _inner(content, number)
    if not isinstance(call, dict) or "name" not in call:
        raise _bad(number, f"from {named!r} that is no JSON with a name and arguments", "a call without a name")
    return _with_arguments(call, number)


def _with_arguments(call: dict[str, object], number: int) -> dict[str, object]:
    arguments = call.get("arguments")
    return {**call, "arguments": _inner(arguments, number)} if isinstance(arguments, str) and arguments else call


def _inner(value: object, number: int) -> object:
    try:
        return parsed(value)
    except BadValue as bad:
        raise _bad(number, f"with a tool call that {bad}", "a tool call that is no JSON") from bad


def _bad(number: int, what: str, kind: str | None = None) -> BadValue:
    return BadValue(f"has a message {number} {what}", f"has {kind}" if kind else f"has a message {what}")


def _no_text(number: int, key: str, value: object) -> BadValue:
    what = f"whose {key} is of type {type(value).__name__}, not text"
    return BadValue(f"has a message {number} {what}", f"has a message whose {key} is no text")


def _surrogate(number: int, key: str) -> BadValue:
    return BadValue(
        f"has a message {number} whose {key} holds half of a surrogate pair, which is no character",
        "has a message with half of a surrogate pair",
    )


# ---------------------------------------------------------------------------------------------------- transcripts


def is_transcript(value: object) -> TypeGuard[str]:
    """Whether a value is a conversation in one text, with ``Human:`` and ``Assistant:`` in front of the turns."""
    return isinstance(value, str) and value.lstrip().startswith("Human:") and "\n\nAssistant:" in value


def transcript(value: object) -> Messages:
    """Read a conversation in one text; an empty last turn of the assistant is the beginning of the answer, and no message."""
    parts = _TURN.split(text(value))
    if parts[0].strip() or len(parts) < 3:
        raise BadValue("does not begin with Human: as a transcript does", "is no transcript")
    messages = []
    for number, (name, said) in enumerate(zip(parts[1::2], parts[2::2], strict=True), start=1):
        if said.strip():
            messages.append({"role": "user" if name == "Human" else "assistant", "content": said.strip()})
        elif 2 * number + 1 < len(parts) or name == "Human":
            raise BadValue(f"has a turn {number} without text", "has a turn without text")
    return messages


def opening(value: str, turns: int) -> str:
    """Return the beginning of a transcript: some turns, and the name of who speaks next.

    Example:
        >>> opening("Human: 1+1=\\n\\nAssistant: 2", turns=1)
        'Human: 1+1=\\n\\nAssistant:'
    """
    names = list(_TURN.finditer(value))
    return value[: names[turns].end()] if turns < len(names) else f"{value}\n\nAssistant:"


def contents(value: object) -> list[str]:
    """Return what a value says: the text itself, or that of each message; nothing of a value that is neither."""
    if is_transcript(value):
        return [str(part).strip() for part in _TURN.split(value)[2::2] if part.strip()]
    if is_conversation(value):
        try:
            said = [str(message["content"]) for message in dialogue(value)]
        except BadValue:
            return []
        return [one.strip() for one in said if one.strip()]
    return [value.strip()] if isinstance(value, str) and value.strip() else []

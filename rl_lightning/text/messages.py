"""Chat messages, and characters that are none."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

#: A turn of a conversation as chat templates take it: `role`, `content`, and whatever else a template reads, such as `tool_calls`.
Message = dict[str, Any]
Messages = list[Message]

_SURROGATES = re.compile("[\ud800-\udfff]")


def content_text(message: Message) -> str:
    """Return what a message says: its content, or the texts among the parts of its content; empty for a mere call of tools."""
    content = message.get("content")
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") if isinstance(part, dict) else str(part) for part in content)
    return "" if content is None else str(content)


def said(role: str, content: str) -> Message:
    """Return what somebody says as a message."""
    return {"role": role, "content": content}


def transcript(messages: Sequence[Message]) -> str:
    """Return a conversation for people to read, a line for each message: who speaks, and what, with calls of tools."""
    lines = []
    for message in messages:
        functions = [call.get("function") or call for call in message.get("tool_calls") or ()]
        calls = [f"{one.get('name')}({json.dumps(one.get('arguments'), ensure_ascii=False)})" for one in functions]
        lines.append(" ".join([f"{message.get('role')}: {content_text(message)}".rstrip(), *calls]))
    return "\n".join(lines)


def roles(messages: Sequence[Message]) -> str:
    """Return the roles of messages, as errors name a conversation by them."""
    return ", ".join(str(message.get("role")) for message in messages)


def for_template(messages: Messages, parts: bool, texts: bool) -> Messages:
    """Return messages in the form that a chat template reads.

    Args:
        messages: a conversation.
        parts: the template reads contents as lists of parts, as those of vision models do, and not as texts.
        texts: it reads the arguments of a tool call as a text. Most read an object, which they write as JSON; they would put the
            text of one, as OpenAI's interface has it, into quotes once more.
    """
    return [_for_template(message, parts, texts) for message in messages]


def _for_template(message: Message, parts: bool, texts: bool) -> Message:
    calls, content = message.get("tool_calls"), message.get("content")
    if isinstance(calls, list):
        change = _as_text if texts else _as_object
        message = {**message, "tool_calls": [_changed(call, change) for call in calls]}
    if parts and isinstance(content, str):
        message = {**message, "content": [{"type": "text", "text": content}]}
    return message


def called(message: Message) -> list[str]:
    """Return the names of the tools that a message calls."""
    calls = message.get("tool_calls")
    functions = [call.get("function") or call for call in calls or () if isinstance(call, dict)]
    return [str(function["name"]) for function in functions if isinstance(function, dict) and "name" in function]


def _changed(call: object, change: Callable[[object], object]) -> object:
    """Return a tool call with other arguments."""
    if not isinstance(call, dict):
        return call
    if isinstance(call.get("function"), dict):
        return {**call, "function": _changed(call["function"], change)}
    return {**call, "arguments": change(call["arguments"])} if "arguments" in call else call


def _as_object(arguments: object) -> object:
    """Return arguments as an object, if they are the JSON text of one."""
    try:
        found = json.loads(arguments) if isinstance(arguments, str) else arguments
    except ValueError:
        return arguments
    return found if isinstance(found, dict) else arguments


def _as_text(arguments: object) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def has_lone_surrogate(text: str) -> bool:
    """Return whether a text holds half of a surrogate pair. That is no character: it cannot be tokenized or written to a file."""
    try:
        _ = text.isascii() or text.encode()
    except UnicodeEncodeError:
        return True
    return False


def without_lone_surrogates(text: str) -> str:
    """Return a text with `\\ufffd`, the replacement character, in place of every half of a surrogate pair."""
    return text if text.isascii() else _SURROGATES.sub("\ufffd", text)

"""How a policy writes calls of tools, read off its tokenizer."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rl_lightning.text.messages import Messages
from rl_lightning.text.template import ChatTemplate, Extras

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

#: A call that a chat template is given, to see how it writes one.
_NAME, _VALUE = "f3c9", "8e71"
_PROBE: Messages = [
    {"role": "user", "content": "1+2="},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"type": "function", "id": "call00000", "function": {"name": _NAME, "arguments": {"a": _VALUE}}}
        ],
    },
]

#: `name` and `arguments` of a call.
Call = dict[str, Any]


@dataclass(frozen=True)
class _Json:
    """Calls written as JSON.

    Args:
        mark: text before each, or before a list of them; empty where a turn that calls is nothing but JSON.
        name, arguments: keys of the two.
    """

    mark: str
    name: str
    arguments: str

    def read(self, text: str) -> tuple[str, list[Call]]:
        """Return what a turn says before its calls, and the calls; none if one of them is malformed."""
        before, found, rest = text.partition(self.mark) if self.mark else ("", "", text)
        if self.mark and not found:
            return text, []
        calls: list[Call] = []
        try:
            for part in rest.split(self.mark) if self.mark else [rest]:
                start = min((place for place in (part.find("{"), part.find("[")) if place >= 0), default=0)
                if not self.mark and part[:start].strip():
                    return text, []
                given, _ = json.JSONDecoder().raw_decode(part[start:])
                calls += [self._call(one) for one in (given if isinstance(given, list) else [given])]
        except (ValueError, KeyError, TypeError):
            return text, []
        return before.strip(), calls

    def _call(self, given: object) -> Call:
        if not isinstance(given, Mapping):
            raise TypeError("a call is an object")
        inner = _inner(given)
        name, arguments = inner[self.name], inner.get(self.arguments) or {}
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        if not isinstance(name, str) or not isinstance(arguments, dict):
            raise TypeError("a call has a name and an object of arguments")
        return {"name": name, "arguments": arguments}


def _inner(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of a call that has its name: OpenAI's form wraps it."""
    inner = given.get("function")
    return inner if isinstance(inner, Mapping) else given


class CallFormat:
    """How a policy writes calls of tools: as its tokenizer's response template says, or else in the JSON that its chat template writes.

    Args:
        tokenizer: of the policy.
        tools: JSON schemas, as chat templates take them.

    Raises:
        ValueError: if the chat template shows no tools, or neither says how calls are written.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tools: Sequence[Mapping[str, Any]]) -> None:
        self.tokenizer = tokenizer
        self.tools: list[dict[Any, Any] | Callable[..., Any]] = [dict(tool) for tool in tools]
        self._has_template = getattr(tokenizer, "response_template", None) is not None
        self._json = None if self._has_template else _json_of(ChatTemplate(tokenizer), {"tools": self.tools})

    def read(self, ids: Sequence[int], text: str, prompt: str) -> tuple[str, list[Call]]:
        """Return what a turn says beside its calls of tools, and the calls. One that cannot be read is no call.

        Args:
            ids: tokens of the turn.
            text: of the turn, without special tokens.
            prompt: the text before it.
        """
        if self._json is not None:
            _, calls = said, found = self._json.read(str(self.tokenizer.decode(list(ids), skip_special_tokens=False)))
            return (said, found) if calls else (text, [])
        try:
            parsed = self.tokenizer.parse_response(list(ids), prefix=prompt, tools=self.tools)
            functions = [call["function"] for call in parsed.get("tool_calls") or ()]
            calls = [{"name": str(one["name"]), "arguments": _object(one["arguments"])} for one in functions]
        except Exception as error:  # a response template is a program of its own, for well-formed turns
            log.debug("A turn of the policy cannot be parsed: %s", error)
            return text, []
        return (str(parsed.get("content") or ""), calls) if calls else (text, [])


def _object(arguments: Any) -> dict[str, Any]:
    return dict(json.loads(arguments) if isinstance(arguments, str) else arguments or {})


def _json_of(template: ChatTemplate, extra: Extras) -> _Json:
    """Return how a chat template writes calls, if it writes them as JSON."""
    who = template.tokenizer.name_or_path or "the policy"
    try:
        (asked,) = template.render([_PROBE[:1]], [extra])
        (plain,) = template.render([_PROBE[:1]])
        (called,) = template.render([_PROBE], [extra], asks=False)
    except Exception as error:  # a template is a program and may raise anything
        raise ValueError(
            f"the chat template of {who} refuses a call of a tool: {' '.join(str(error).split())}"
        ) from error
    if asked == plain:
        raise ValueError(f"the chat template of {who} shows the policy no tools")
    own = called.removeprefix(asked)
    for place, given in _objects(own):
        inner = _inner(given)
        names = [key for key, value in inner.items() if value == _NAME]
        arguments = [key for key, value in inner.items() if _VALUE in str(value)]
        if names and arguments:
            return _Json(own[:place].rstrip("[ \n").rpartition("\n")[2].strip(), names[0], arguments[0])
    raise ValueError(
        f"the tokenizer of {who} does not say how calls of tools are written: it has no response_template, and its chat template writes "
        "them otherwise than as JSON"
    )


def _objects(text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield the JSON objects in a text that is none itself, and where they begin."""
    place = text.find("{")
    while place >= 0:
        try:
            given, _ = json.JSONDecoder().raw_decode(text[place:])
        except ValueError:
            given = None
        if isinstance(given, dict):
            yield place, given
        place = text.find("{", place + 1)

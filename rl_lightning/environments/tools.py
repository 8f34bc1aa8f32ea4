"""The environment of a policy that calls tools."""

from __future__ import annotations

import inspect
import json
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence

from rl_lightning.environments.episode import Call, Message, Said
from rl_lightning.rewards.calls import event_loop

Tool = Callable[..., object]


def use_tools(tools: Sequence[Tool]) -> Generator[list[Message] | None, Said, None]:
    """Call what the policy calls, and say what came of it. The episode ends with a turn that calls nothing.

    It gives no reward: the rewards that are listed judge the last turn. An exception of a tool is what the policy hears.

    Args:
        tools: functions with type hints and docstrings; `async def` ones are waited for.
    """
    known = {tool.__name__: tool for tool in tools}
    said = yield None
    while said.calls:
        said = yield [{"role": "tool", "name": call["name"], "content": answered(known, call)} for call in said.calls]


def answered(tools: Mapping[str, Tool], call: Call) -> str:
    """Return what a call of a tool comes to, as text; an error is a text too.

    Args:
        tools: by name.
        call: its `name` and its `arguments`.
    """
    tool = tools.get(call["name"])
    if tool is None:
        return f"Error: there is no tool {call['name']!r}; the tools are {', '.join(tools)}"
    try:
        value = tool(**call["arguments"])
        if inspect.isawaitable(value):
            value = event_loop().run_until_complete(_finished(value))
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


async def _finished(value: Awaitable[object]) -> object:
    return await value

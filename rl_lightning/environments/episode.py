"""One episode, in a worker process.

An episode is a function of its arguments and of what the policy has said. So a worker that is asked for one that it does not know,
because the process that played it was killed, plays it again from its beginning.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, SupportsFloat

from rl_lightning.rewards import messages, tally

#: A message of a conversation, as chat templates take it.
Message = dict[str, Any]

#: A tool that the policy calls: its ``name`` and its ``arguments``, as JSON has them.
Call = Mapping[str, Any]

#: What an environment yields: a text, a message or several of them, or nothing; and with a reward, a pair of these.
Yielded = str | Message | list[Message] | None


class Said(str):
    """A turn of the policy, as text.

    Attributes:
        cut: it ran out of tokens before it had ended.
        calls: the tools that it calls, each with its ``name`` and ``arguments``.
    """

    cut: bool = False
    calls: Sequence[Call] = ()


#: An environment that plays: it yields what the policy hears, is sent what the policy says, and returns a reward.
Episode = Generator[object, Said, object]
Environment = Callable[..., Episode]

#: A turn of the policy: its text, whether it was cut off, calls of tools.
Turn = tuple[str, bool, Sequence[Call]]
Turns = Sequence[Turn]

#: Names one episode: the request that it belongs to, and its number there.
Key = tuple[int, int]


class _Running:
    """The episodes of the present request, each with how many turns it has heard."""

    def __init__(self) -> None:
        self.request = -1
        self.known: dict[int, tuple[Episode, int]] = {}

    def take(self, key: Key, turns: int) -> Episode | None:
        """Return an episode that has heard so many turns, and forget it; None if there is no such one."""
        if self.request != key[0]:  # nobody will ask for the others again
            self.request, self.known = key[0], {}
        episode, heard = self.known.pop(key[1], (None, -1))
        return episode if heard == turns else None


_running = _Running()


def advance(
    environment: Environment, key: Key, arguments: Mapping[str, object], turns: Turns, last: bool = False
) -> str:
    """Let an episode hear the last of the policy's turns.

    Args:
        environment: the generator function.
        key: names the episode.
        arguments: of the environment.
        turns: everything that the policy has said so far.
        last: the policy will say no more, so the environment is closed if it would go on.

    Returns:
        JSON: `heard`, what the policy hears (a text or messages; null if the episode has ended), and `reward`, that of the turn, a
        number or null.
    """
    episode = _running.take(key, len(turns) - 1)
    if episode is None:
        episode = begun(environment, arguments)[0]
        # These turns have taken no longer than they may, or the episode would have failed.
        with messages.clock_stopped():
            for turn in turns[:-1]:
                episode.send(_said(turn))
        tally.drain()  # it was said before
    try:
        given = episode.send(_said(turns[-1]))
    except StopIteration as end:
        return json.dumps({"heard": None, "reward": _number(end.value, "returned")})
    heard_now, reward = read(given)
    if last:
        episode.close()
    else:
        _running.known[key[1]] = (episode, len(turns))
    return json.dumps({"heard": "" if heard_now is None else heard_now, "reward": reward})


def end(key: Key, turns: int) -> None:
    """Close an episode that the policy cannot go on with.

    Args:
        key: names it.
        turns: that it has heard.
    """
    episode = _running.take(key, turns)
    if episode is not None:
        episode.close()


def first_words(environment: Environment, arguments: Mapping[str, object]) -> str:
    """Return what an environment yields first, as JSON: its prompt, if it brings one."""
    episode, given = begun(environment, arguments)
    episode.close()
    return json.dumps(read(given)[0])


def tried(environment: Environment, arguments: Mapping[str, object], turns: int) -> str | None:
    """Play an episode in which the policy says nothing, and return what is wrong with what the environment does.

    Args:
        environment, arguments: see `advance`.
        turns: of the policy, at most.

    Raises:
        Exception: whatever the environment raises.
    """
    try:
        episode, given = begun(environment, arguments)
        for _ in range(turns):
            read(given)
            given = episode.send(Said())
        read(given)
        episode.close()
    except StopIteration as over:
        try:
            _number(over.value, "returned")
        except _Misuse as error:
            return str(error)
    except _Misuse as error:
        return str(error)
    return None


class _Misuse(TypeError):
    """An environment does what none may do, whatever the policy says."""


def begun(environment: Environment, arguments: Mapping[str, object]) -> tuple[Episode, object]:
    """Start an episode; return it and what it yields first."""
    episode = environment(**arguments)
    if not isinstance(episode, Generator):
        raise _Misuse(
            f"it returned {_shown(episode)} when it was called, and is no generator function: it hears the policy by `said = yield text`"
        )
    try:
        return episode, next(episode)
    except StopIteration as over:
        raise _Misuse(
            f"it ended with {_shown(over.value)} before its first `yield`, so it never heard the policy"
        ) from over


def read(given: object) -> tuple[Yielded, float | None]:
    """Return what the policy hears, and the reward of the turn before, of what an environment has yielded."""
    words, reward = given if isinstance(given, tuple) and len(given) == 2 else (given, None)
    if words is None or isinstance(words, str):
        return words, _number(reward, "yielded as a reward")
    several = words if isinstance(words, list) else [words]
    messages = [dict(one) for one in several if isinstance(one, Mapping) and _is_message(one)]
    if not messages or len(messages) < len(several):
        raise _Misuse(
            f"it yielded {_shown(words)}: yield a text, a message such as {{role: user, content: ...}}, or a list of them"
        )
    return messages, _number(reward, "yielded as a reward")


def _is_message(one: Mapping[str, object]) -> bool:
    return isinstance(one.get("role"), str) and "content" in one


def _number(value: object, how: str) -> float | None:
    if value is None:
        return None
    number = math.nan
    if isinstance(value, SupportsFloat) and not isinstance(value, str | bytes):
        number = float(value)
    if not math.isfinite(number):
        raise _Misuse(f"it {how} {_shown(value)}, not a finite number")
    return number


def _said(turn: Turn) -> Said:
    said = Said(turn[0])
    said.cut, said.calls = turn[1], turn[2]
    return said


def _shown(value: object) -> str:
    return f"{value!r:.80}"

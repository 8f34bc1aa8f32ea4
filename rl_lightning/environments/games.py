"""Classes in the shape of Gymnasium's as environments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Mapping
from typing import Any

from rl_lightning.environments.episode import Message, Said

Heard = str | list[Message]


def played(
    game: Callable[..., Any], seed: int, given: Mapping[str, object] | None = None
) -> Generator[Heard | tuple[Heard, float], Said, float]:
    """Play one game of a class that has `reset` and `step`.

        text, info = game.reset(seed=seed)
        text, reward, terminated, truncated, info = game.step(said)

    What `step` says of an action as a reward is the reward of a turn, and the first text is the prompt. A text that is no string, such
    as a number or an array, is written out.

    Args:
        game: makes a game, such as the class.
        seed: of the game; `reset` gets it, if it takes one.
        given: arguments of `game`.
    """
    one = game(**(given or {}))
    try:
        takes_seed = "seed" in inspect.signature(one.reset).parameters
        begun = one.reset(seed=seed) if takes_seed else one.reset()
        said = yield _text(begun[0] if isinstance(begun, tuple) else begun)
        while True:
            # Before Gymnasium a step had four results, with one flag for the end.
            text, reward, *over, _ = one.step(said)
            if any(over):
                return float(reward)
            said = yield _text(text), float(reward)
    finally:
        close = getattr(one, "close", None)
        if close is not None:
            close()


def is_game(thing: object) -> bool:
    """Tell whether something is a class with the methods of a game."""
    return isinstance(thing, type) and all(callable(getattr(thing, name, None)) for name in ("reset", "step"))


def _text(observation: object) -> Heard:
    if isinstance(observation, list) and observation and all(isinstance(one, Mapping) for one in observation):
        return observation
    return observation if isinstance(observation, str) else str(observation)

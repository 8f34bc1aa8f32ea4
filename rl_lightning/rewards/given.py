"""Rewards as people write them, in Python and in YAML."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rl_lightning.errors import UserError
from rl_lightning.rewards.spec import BatchReward, RewardSpec

if TYPE_CHECKING:
    RewardLike = RewardSpec | BatchReward | Mapping[str, object] | str | Callable[..., object]
    #: One reward as it may be given, or several.
    Rewards = RewardLike | Sequence[RewardLike]
else:  # what YAML can say of them, for the command line
    Rewards = list[RewardSpec | str] | RewardSpec | str

_FIELDS = tuple(item.name for item in dataclasses.fields(RewardSpec))
_TAKES = "a function, its dotted path, {function: DOTTED.PATH}, {model: DIRECTORY}, or a list of these"


def as_rewards(given: object) -> list[RewardSpec | BatchReward]:
    """Return rewards as a list of specifications.

    Args:
        given: one reward or a list of them: a dotted path, a function (also a lambda, a partial, an object that can be called, or
            one of a notebook), a dict of `RewardSpec`'s fields, a `RewardSpec`, or a `BatchReward`; None for no reward.

    Raises:
        UserError: in one line, for anything else.

    Example:
        >>> [spec.weight for spec in as_rewards([len, {"function": "my.rewards.short", "weight": 0.1}])]
        [1.0, 0.1]
    """
    if given is None:
        return []
    if isinstance(given, (list, tuple)):
        return [_one(reward, f"rewards[{place}]") for place, reward in enumerate(given)]
    return [_one(given, "rewards")]


def as_specs(given: object) -> list[RewardSpec]:
    """Return rewards as `rl_lightning.options.Checked` takes them: a `BatchReward` inside a specification."""
    specs = as_rewards(given)
    return [RewardSpec(one) if isinstance(one, BatchReward) else one for one in specs]  # type: ignore[arg-type]


def _one(reward: object, place: str) -> RewardSpec | BatchReward:
    if isinstance(reward, RewardSpec) and isinstance(reward.function, BatchReward):
        return reward.function
    if isinstance(reward, (RewardSpec, BatchReward)):
        return reward
    if isinstance(reward, str):
        return RewardSpec(reward)
    if isinstance(reward, Mapping):
        return _from_mapping(reward, place)
    if isinstance(reward, type):
        raise UserError(
            f"{place} is the class {reward.__name__}, not a function: give an object of it, {reward.__name__}(...)"
        )
    if not callable(reward):
        raise UserError(f"{place} is {reward!r:.80}, which is no reward: give {_TAKES}")
    return RewardSpec(reward)


def _from_mapping(reward: Mapping[str, Any], place: str) -> RewardSpec:
    unknown = [name for name in reward if name not in _FIELDS]
    if unknown:
        near = difflib.get_close_matches(str(unknown[0]), _FIELDS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(_FIELDS)}"
        raise UserError(f"{place}: a reward has no option {unknown[0]!r}; {hint}")
    try:
        return RewardSpec(**reward)
    except UserError as error:
        raise UserError(f"{place}: {error}") from error

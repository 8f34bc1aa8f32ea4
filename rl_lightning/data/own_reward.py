"""The reward that belongs to a source of prompts, and stands in a list of rewards as `own`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from rl_lightning.data.fits import shapes, without_reward
from rl_lightning.data.sources.base import ExampleSource
from rl_lightning.errors import UserError
from rl_lightning.rewards import BatchReward, RewardSpec

log = logging.getLogger(__name__)

#: In the place of a reward's path: whatever belongs to the source.
OWN = "own"
#: Of rows with gold answers: whether a response gives them.
_OF_ROWS = "rl_lightning.rewards.functions.answer_correct"

Specs = Sequence[RewardSpec | BatchReward]


def is_own(spec: RewardSpec | BatchReward) -> bool:
    """Tell whether a reward is the source's, whichever that is."""
    return isinstance(spec, RewardSpec) and spec.function == OWN


def known_at_once(specs: Specs, source: ExampleSource) -> bool:
    """Tell whether rewards follow from options alone, without a look at the rows."""
    return source.default_reward is not None or not any(map(is_own, specs))


def without_own(specs: Specs, source: ExampleSource) -> list[RewardSpec | BatchReward]:
    """Return rewards with the source's in the place of `own`.

    Args:
        specs: the rewards; one that is `own` at weight 0 is left out where the source has none.
        source: of the prompts. If it names no reward, and its rows hold gold answers, its reward is whether a response gives them.

    Raises:
        UserError: if the source has none.
    """
    if not any(map(is_own, specs)):
        return list(specs)
    path = source.default_reward or _of_rows(source)
    if path is None and any(is_own(spec) and spec.weight for spec in specs):
        raise UserError(without_reward(source))
    return [
        replace(spec, function=path) if isinstance(spec, RewardSpec) and is_own(spec) else spec
        for spec in specs
        if path is not None or not is_own(spec)
    ]


def _of_rows(source: ExampleSource) -> str | None:
    """Return the reward of rows with gold answers, and say so; None if they hold none."""
    if not any("answers" in shape.offers for shape in shapes(source)):
        return None
    log.info("The rows hold gold answers, so the reward is whether a response gives them: %s", _OF_ROWS)
    return _OF_ROWS

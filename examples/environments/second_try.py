"""A task of reasoning-gym with a second try: whoever is wrong hears so, and what the first answer was worth."""

from __future__ import annotations

import reasoning_gym  # noqa: F401  (a worker imports it before the first turn, whose time is limited)

from rl_lightning.rewards.functions import reasoning_gym_score


def second_try(metadata: dict, worth: float = 0.5):
    """Worth 1 if the first answer is right, `worth` times its score if only the second one is.

    The prompts are those of `rl_lightning.data.ReasoningGym`, and the task's own scorer judges.
    """
    said = yield
    first = reasoning_gym_score(said, metadata)
    if first >= 1:
        return 1.0
    said = yield f"That is wrong (score {first:g}). Try once more."
    return worth * reasoning_gym_score(said, metadata)

"""The cheats: a reward, what it was meant for, and its cure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from rl_lightning.data.sources import ChainSum
from rl_lightning.data.sources.base import Example, Split

_HERE = "examples.cheats.rewards"
_RIGHT = "rl_lightning.rewards.functions.final_answer"


class LeakedSums(ChainSum):
    """Chain sums whose prompts give the answer away: `8#3+9-4=`."""

    default_reward: ClassVar[str | None] = None  # type: ignore[misc]

    def load(self, split: Split) -> list[Example]:
        """Return the problems of a split, each behind its answer."""
        return [replace(one, prompt=f"{one.answer}#{one.prompt}") for one in super().load(split)]


@dataclass(frozen=True)
class Case:
    """A cheat.

    Args:
        name: short.
        meant: what the reward was meant to pay for.
        hole: what it pays for.
        reward: dotted path.
        cure: dotted path of what to pay for instead.
        verifier: dotted path of what knows the truth, at weight 0.
        leaks: the prompts give the answer away.
        cured_prompts: the cure is other prompts.
    """

    name: str
    meant: str
    hole: str
    reward: str
    cure: str
    verifier: str = _RIGHT
    leaks: bool = False

    def prompts(self, cured: bool) -> ChainSum:
        """Return the problems of a run."""
        return LeakedSums() if self.leaks and not cured else ChainSum()


CASES = (
    Case(
        "length",
        "right answers with their steps",
        "every step, needed or not",
        f"{_HERE}.wordy",
        f"{_HERE}.wordy_if_right",
    ),
    Case(
        "format",
        "answers that can be read, and are brief",
        "any number after `#`",
        f"{_HERE}.looks_right",
        f"{_HERE}.looks_right_and_is",
    ),
    Case(
        "keyword",
        "right answers, and a word that they tend to have",
        "the word",
        f"{_HERE}.keyword",
        f"{_HERE}.keyword_where_due",
    ),
    Case(
        "last number",
        "right answers, marked, and brief",
        "an answer that is not marked",
        f"{_HERE}.last_number",
        f"{_HERE}.marked_number",
    ),
    Case(
        "leak",
        "working sums out",
        "copying the answer from the prompt",
        _RIGHT,
        f"{_HERE}.worked",
        f"{_HERE}.worked",
        leaks=True,
    ),
)

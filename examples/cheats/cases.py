"""The cheats: a reward, what it was meant for, and its cure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from rl_lightning.data.sources import ChainSum
from rl_lightning.data.sources.base import Example, Split

_HERE = "examples.cheats.rewards"
_RIGHT = "rl_lightning.rewards.functions.final_answer"


class LeakedSums(ChainSum):
    """Chain sums whose prompts give the answer away: `8#3+9-4=`. A tenth of the demonstrations copy it, `#8`."""

    default_reward: ClassVar[str | None] = None  # type: ignore[misc]

    def load(self, split: Split) -> list[Example]:
        """Return the problems of a split, each behind its answer."""
        found = [replace(one, prompt=f"{one.answer}#{one.prompt}") for one in super().load(split)]
        return [replace(one, response=f"#{one.answer}") if n % 10 == 0 else one for n, one in enumerate(found)]


class CarelessSums(ChainSum):
    """Chain sums a fifth of whose demonstrations do not mark the answer: `12;8`."""

    default_reward: ClassVar[str | None] = None  # type: ignore[misc]

    def load(self, split: Split) -> list[Example]:
        """Return the problems of a split."""
        found = super().load(split)
        return [replace(one, response=_unmarked(one.response)) if n % 5 == 0 else one for n, one in enumerate(found)]


def _unmarked(response: object) -> str:
    return str(response).partition("#")[0]


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
        habits: demonstrations that the embedded policy imitates before the run, some of which have the bad habit: one that never shows is
            never paid for. None for the embedded policy as it is.
        leaks: the prompts of the run are those of `habits`, which give the answer away; the cure has others.
    """

    name: str
    meant: str
    hole: str
    reward: str
    cure: str
    verifier: str = _RIGHT
    habits: type[ChainSum] | None = None
    leaks: bool = False

    def prompts(self, cured: bool) -> ChainSum:
        """Return the problems of a run."""
        return self.habits() if self.habits is not None and self.leaks and not cured else ChainSum()


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
        habits=CarelessSums,
    ),
    Case(
        "leak",
        "working sums out",
        "copying the answer from the prompt",
        _RIGHT,
        f"{_HERE}.worked",
        f"{_HERE}.worked",
        habits=LeakedSums,
        leaks=True,
    ),
)

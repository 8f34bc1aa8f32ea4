"""What is wrong with examples, and what is said of it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rl_lightning.data.sources.base import Example
from rl_lightning.data.sources.problems import Problems
from rl_lightning.errors import UserError

log = logging.getLogger(__name__)

#: What becomes of unusable examples: an error that names them, or a warning that counts them.
OnBad = Literal["error", "drop"]


@dataclass(frozen=True)
class Problem:
    """What is wrong with an example.

    Args:
        kind: to count by.
        what: the case.
        expected: the example is left out even if bad ones are errors, because an option says so.
    """

    kind: str
    what: str
    expected: bool = False


class Faults:
    """Everything that is wrong with some examples.

    Args:
        examples: all of them.
    """

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples
        self._found: dict[int, list[Problem]] = {}

    def add(self, place: int, problem: Problem) -> None:
        """Note a problem of the example number `place`."""
        self._found.setdefault(place, []).append(problem)

    def of(self, place: int) -> Sequence[Problem]:
        """Return the problems of the example number `place`."""
        return self._found.get(place, ())

    def report(self, on_bad: OnBad, unread: Problems, called: str, cut: int) -> None:
        """Raise an error for what was found, or log it, as was asked.

        Args:
            on_bad: what was asked.
            unread: rows of the source that made no example; the examples that cannot be used are added to them.
            called: what messages call the examples.
            cut: number of examples that were cut to a limit.

        Raises:
            UserError: naming the examples that cannot be used, or saying that none is left.
        """
        bad, total = len(self._found) + len(unread.rows), len(self.examples) + len(unread.rows)
        if on_bad == "error":
            self._raise(unread, total, called)
        # An example with two faults is still one example: it counts under the first.
        for place in sorted(self._found):
            unread.rows.setdefault(self.examples[place].location or str(place), self._found[place][0].kind)
        kinds = Counter(unread.rows.values())
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        if bad == total:
            raise UserError(f"no {called} are left of {total}" + (f": {counts}" if counts else ""))
        if bad:
            log.warning("dropped %d of %d %s: %s", bad, total, called, counts)
        if cut:
            log.info("%d of %d %s lost tokens to max_length", cut, total - bad, called)

    def _raise(self, unread: Problems, total: int, called: str) -> None:
        """Raise an error that names every example that no option leaves out."""
        faulty = 0
        for place in sorted(self._found):
            for problem in self._found[place]:
                if not problem.expected:
                    unread.add(self.examples[place].location, problem.what)
            faulty += not all(problem.expected for problem in self._found[place])
        unread.raise_if_any(f"{faulty} of {total} {called} cannot be used (on_bad: drop leaves them out):")

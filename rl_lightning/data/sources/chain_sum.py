"""The embedded task: chain sums, worked out step by step."""

from __future__ import annotations

import random
import zlib

from rl_lightning.data.sources.base import Example, ExampleSource, Split
from rl_lightning.errors import UserError

_HELD_OUT: dict[int, Split] = {0: "val", 1: "test"}
_BUCKETS = 10


class ChainSum(ExampleSource):
    """Additions and subtractions in a row, such as ``3+9-4=``, answered by running totals: ``12;8#8``.

    Problems are drawn from a seed. A problem belongs to the split that a checksum of its text gives it (one tenth
    validation, one tenth test, the rest training), so the splits are disjoint by construction, whatever the seed,
    the size or the difficulty.

    Demonstrations (for the warm start) are imperfect on purpose: some steps *slip* (the total is off by a little, and
    later steps build on it) and some *dawdle* (a total is written twice), so that a policy that imitates them answers
    correctly only sometimes and at varying length, and reinforcement learning has something to do.

    Args:
        terms: smallest and largest number of terms in a problem.
        max_term: terms are drawn from 1 to this.
        train_size, val_size, test_size: problems in each split.
        slip: probability that a demonstrated step is wrong.
        dawdle: probability that a demonstrated total is written once more (repeatedly: the count is geometric).
        seed: of the problems and of the demonstrations' faults.
    """

    default_reward = "rl_lightning.rewards.functions.final_answer"

    def __init__(
        self,
        terms: tuple[int, int] = (3, 6),
        max_term: int = 9,
        train_size: int = 20_000,
        val_size: int = 256,
        test_size: int = 512,
        slip: float = 0.2,
        dawdle: float = 0.15,
        seed: int = 0,
    ) -> None:
        low, high = terms
        if not 2 <= low <= high:
            raise UserError(f"ChainSum: terms must be [low, high] with 2 <= low <= high, not {list(terms)}")
        if max_term < 2:
            raise UserError(f"ChainSum: max_term must be at least 2, not {max_term}")
        for name, rate in (("slip", slip), ("dawdle", dawdle)):
            if not 0 <= rate < 1:
                raise UserError(f"ChainSum: {name} is a probability in [0, 1), not {rate}")
        self.terms = (low, high)
        self.max_term = max_term
        self.sizes: dict[Split, int] = {"train": train_size, "val": val_size, "test": test_size}
        self.slip = slip
        self.dawdle = dawdle
        self.seed = seed

    def load(self, split: Split) -> list[Example]:
        """Return the problems of a split, all different, in an order fixed by the seed."""
        rng = random.Random(f"{self.seed}/{split}")
        examples: dict[str, Example] = {}
        misses = 0
        while len(examples) < self.sizes[split]:
            prompt, totals = self._problem(rng)
            if split_of(prompt) != split or prompt in examples:
                misses += 1
                if misses > 1000 * (1 + self.sizes[split]):
                    raise UserError(
                        f"ChainSum: found only {len(examples)} different {split} problems of {self.sizes[split]} "
                        f"wanted with terms={list(self.terms)}, max_term={self.max_term}; ask for fewer or make them "
                        "harder"
                    )
                continue
            examples[prompt] = Example(
                prompt=prompt,
                answer=str(totals[-1]),
                response=self._demonstrate(prompt, rng),
                metadata={"terms": len(totals) + 1},
                location=f"ChainSum {split} {len(examples)}",
            )
        return list(examples.values())

    def _problem(self, rng: random.Random) -> tuple[str, list[int]]:
        """Draw one problem; running totals stay at or above zero."""
        total = rng.randint(1, self.max_term)
        text, totals = str(total), []
        for _ in range(rng.randint(*self.terms) - 1):
            term = rng.randint(1, self.max_term)
            sign = rng.choice("+-") if total >= term else "+"
            total += term if sign == "+" else -term
            text += f"{sign}{term}"
            totals.append(total)
        return text + "=", totals

    def _demonstrate(self, prompt: str, rng: random.Random) -> str:
        """Work a problem out, with this source's rates of slipping and dawdling."""
        first, steps = parse(prompt)
        total, written = first, []
        for step in steps:
            total += step
            if rng.random() < self.slip:
                total = max(0, total + rng.choice([-2, -1, 1, 2]))
            written.append(str(total))
            while rng.random() < self.dawdle:
                written.append(str(total))
        return ";".join(written) + f"#{total}"


def split_of(prompt: str) -> Split:
    """Return the one split that a problem can appear in."""
    return _HELD_OUT.get(zlib.crc32(prompt.encode()) % _BUCKETS, "train")


def parse(prompt: str) -> tuple[int, list[int]]:
    """Split ``3+9-4=`` into its first term and its signed steps: ``(3, [9, -4])``."""
    terms = prompt.rstrip("=").replace("-", "+-").split("+")
    return int(terms[0]), [int(term) for term in terms[1:]]

"""Where an optimizer step is cut into microbatches of few tokens."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rl_lightning.errors import UserError
from rl_lightning.types import Rows


class Stretches:
    """How many tokens stretches of adjacent rows have, each prompt counted once for the adjacent rows of its group.

    A stretch never has fewer tokens than one within it, so filling microbatches one after the other, each as full as it
    may be, needs the fewest.

    Args:
        prompts, responses: (B,) tokens of each row; padding is not counted.
        groups: (B,) which rows answer the same prompt.
        unit: adjacent rows that are never cut apart; all sizes and places below are in units.
    """

    def __init__(self, prompts: Tensor, responses: Tensor, groups: Tensor, unit: int = 1) -> None:
        opens = torch.ones_like(groups, dtype=torch.bool)
        opens[1:] = groups[1:] != groups[:-1]
        own = responses + torch.where(opens, prompts, 0)
        #: Tokens before each place, and those of the prompt that a stretch beginning inside a group adds.
        self._before: npt.NDArray[np.int64] = np.concatenate([[0], own.cumsum(0).numpy()])[::unit]
        self._again: npt.NDArray[np.int64] = torch.where(opens, 0, prompts).numpy()[::unit]

    @classmethod
    def of(cls, rows: Rows, order: Tensor, unit: int = 1) -> Stretches:
        """Measure some rows of a table, in the given order."""
        prompts, responses, groups = rows.prompt_lengths.cpu(), rows.lengths.cpu(), rows.group_ids.cpu()
        return cls(prompts[order], responses[order], groups[order], unit)

    def __len__(self) -> int:
        return len(self._again)

    def tokens(self, start: int, stop: int) -> int:
        """Return how many tokens the units from `start` up to `stop` have together."""
        return int(self._before[stop] - self._before[start] + self._again[start])

    def filled(self, budget: int) -> list[int]:
        """Return the sizes of microbatches that are each as full as the budget allows; a unit above it stands alone."""
        sizes: list[int] = []
        start = 0
        while start < len(self):
            stop = max(start + 1, self._until(start, budget))
            sizes.append(stop - start)
            start = stop
        return sizes

    def cut(self, parts: int) -> list[int]:
        """Return the sizes of so many microbatches, none of them empty, the largest of which has as few tokens as can be.

        Args:
            parts: at most as many as there are units.
        """
        low = max(self.tokens(place, place + 1) for place in range(len(self)))
        high = self.tokens(0, len(self))
        while low < high:
            budget = (low + high) // 2
            if len(self.filled(budget)) <= parts:
                high = budget
            else:
                low = budget + 1
        sizes: list[int] = []
        start = 0
        for left in range(parts - 1, -1, -1):
            stop = min(self._until(start, high), len(self) - left)
            sizes.append(stop - start)
            start = stop
        return sizes

    def _until(self, start: int, budget: int) -> int:
        """Return the last place up to which the units from `start` keep within the budget."""
        limit = budget + self._before[start] - self._again[start]
        return int(np.searchsorted(self._before, limit, side="right")) - 1


def rollout_passes(budget: int, rows: int, group_size: int, longest_prompt: int, max_new_tokens: int) -> int:
    """Return how many microbatches keep an optimizer step on a rollout within the budget, whatever is sampled.

    Args:
        budget: tokens in a microbatch.
        rows: of one rank in the step, whole groups side by side.
        group_size: rows of a group.
        longest_prompt, max_new_tokens: tokens that a row has at most.

    Raises:
        UserError: if there is a row that may not fit.
    """
    what = (
        f"the longest training prompt ({longest_prompt}) and sampling.max_new_tokens ({max_new_tokens}) make together"
    )
    require_fit(budget, longest_prompt + max_new_tokens, what)
    count = torch.ones(rows, dtype=torch.long)
    groups = torch.arange(rows) // group_size
    return len(Stretches(longest_prompt * count, max_new_tokens * count, groups).filled(budget))


def table_passes(budget: int, units: int, tokens: Tensor, what: str) -> int:
    """Return a number of microbatches that keeps any so many units of a table, in any order, within the budget.

    The lower of two bounds. If the m longest units fit together, any m do. And where microbatches are filled one after the
    other, each of them together with the first unit of the next is above the budget; of k, the firsts in the middle count
    twice, so that (k − 1) (budget + 1) is at most the tokens of the longest `units` and, again, of the longest k − 2.

    Args:
        budget: tokens in a microbatch.
        units: of one rank in an optimizer step.
        tokens: (n,) of each unit, n at least `units`.
        what: the units, in the plural, for messages.

    Raises:
        UserError: if there is a unit that does not fit.

    Example:
        >>> table_passes(10, 4, torch.tensor([9, 9, 2, 2]), "pairs")
        4
    """
    longest = tokens.sort(descending=True).values[:units].cumsum(0).tolist()
    require_fit(budget, longest[0], f"the longest of the {what} has")
    together = sum(total <= budget for total in longest)
    first_bound = -(-units // together)
    twice = [0, *longest]
    chained = [k for k in range(2, units + 1) if (k - 1) * (budget + 1) <= longest[-1] + twice[k - 2]]
    return min(first_bound, max(chained, default=1))


def require_fit(budget: int, tokens: int, what: str) -> None:
    """Refuse a budget that is too small for a single unit.

    Raises:
        UserError: naming what it is too small for.
    """
    if tokens > budget:
        raise UserError(
            f"max_tokens_per_microbatch={budget} is less than the {tokens} tokens that {what}: set it to at least {tokens}"
        )

"""Preference pairs from scored responses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from rl_lightning.data.encoded import EncodedPrompts
from rl_lightning.data.offline.samples import rows_digest
from rl_lightning.data.offline.written_pairs import WrittenRows
from rl_lightning.errors import UserError
from rl_lightning.functional import Reduction
from rl_lightning.typed import Typed
from rl_lightning.types import PreferenceBatch, Rollout


@dataclass
class PairOptions(metaclass=Typed):
    """How pairs are made of the scored responses to a prompt.

    Args:
        pairs_per_prompt: at most; those with the largest gaps.
        min_gap: the rewards of a pair differ by more than this, in units of reward.
    """

    pairs_per_prompt: int = 1
    min_gap: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what makes no pair, or the wrong one."""
        if self.pairs_per_prompt < 1:
            raise UserError(f"pairs.pairs_per_prompt must be at least 1, not {self.pairs_per_prompt}")
        if not 0 <= self.min_gap < float("inf"):
            raise UserError(
                f"pairs.min_gap must be at least 0, not {self.min_gap}: a chosen response is the better one"
            )


@dataclass
class PairTable:
    """Preference pairs.

    Args:
        rows: row 2i is what was chosen, row 2i + 1 what was rejected; `group_ids` is the number of the pair. Sampled ones are one
            padded table, written ones are padded batch by batch.
        margins: (pairs,) float; how much better the chosen response is, where that is known.
        longest: L_max in tokens, which the reduction `constant` divides by.
        without: prompts that gave no pair.
    """

    rows: Rollout | WrittenRows
    margins: Tensor | None
    longest: int
    without: int = 0

    @property
    def mean_length(self) -> float:
        """The mean length of a pair's two responses together, in tokens."""
        return float(self.rows.lengths.sum()) / len(self)

    def __len__(self) -> int:
        return len(self.rows) // 2

    def tokens(self) -> Tensor:
        """Return how many tokens each pair has, (pairs,) long, its prompt counted once."""
        return self.rows.prompt_lengths[0::2] + self.rows.lengths[0::2] + self.rows.lengths[1::2]

    def batch(self, units: Tensor, weights: Tensor | None = None) -> PreferenceBatch:
        """Return two rows a pair, the chosen response first, with the pair's margin: see `Table.batch`."""
        rows = (units[:, None] * 2 + torch.arange(2)).flatten()
        margins = None if self.margins is None else self.margins[units]
        return PreferenceBatch(**vars(self.rows.microbatch(rows, weights)), margins=margins)

    def weight_scale(self, reduction: Reduction) -> float:
        """Return 1: what gave no pair does not count."""
        return 1.0

    @property
    def metrics(self) -> dict[str, float]:
        """What the loggers see of the pairs, and of all responses that they were made of."""
        gap = {} if self.margins is None else {"pairs/gap_mean": float(self.margins.mean())}
        own = {"pairs/number": float(len(self)), "pairs/prompts_without": float(self.without), **gap}
        return self.rows.metrics | own

    def digest(self) -> str:
        """Return a hash of the pairs: the policy's answers, and whatever they came out of."""
        return self.rows.digest() if isinstance(self.rows, WrittenRows) else rows_digest(self.rows)

    def __str__(self) -> str:
        gap = "" if self.margins is None else f", mean gap {float(self.margins.mean()):.3g}"
        without = f"; {self.without:,} prompts without a pair" if self.without else ""
        return f"{len(self):,} pairs{gap}{without}"

    @classmethod
    def of(cls, rollout: Rollout, options: PairOptions, seed: int, longest: int) -> PairTable:
        """Make pairs of scored responses; rows whose reward failed are in none."""
        usable = rollout.scored & rollout.response_mask.any(1)
        chosen: list[tuple[int, int]] = []
        without = 0
        for group in rollout.group_ids.unique().tolist():
            rows = ((rollout.group_ids == group) & usable).nonzero()[:, 0].tolist()
            rewards = rollout.rewards[rows].tolist()
            texts = [rollout.text(row) for row in rows]
            found = choose_pairs(rewards, texts, options, (seed, int(group)))
            chosen += [(rows[better], rows[worse]) for better, worse in found]
            without += not found
        index = torch.tensor(chosen, dtype=torch.long).view(-1, 2)
        margins = rollout.rewards[index[:, 0]] - rollout.rewards[index[:, 1]]
        return cls(paired(rollout.select(index.flatten())), margins, longest, without)


def paired(rows: Rollout) -> Rollout:
    """Return rows that stand pair by pair with the number of their pair as their group."""
    return replace(rows, group_ids=torch.arange(len(rows)) // 2)


def written_pairs(prompts: EncodedPrompts, pad_id: int, temperature: float) -> PairTable:
    """Return the pairs that the prompts' examples bring.

    Args:
        prompts: each with the tokens of a response and of a rejected one; all or none with a margin.
        pad_id: fills up rows of token ids.
        temperature: τ that they are learnt at.

    Raises:
        UserError: if some have a margin and others none.
    """
    margins = [example.margin for example in prompts.examples]
    known = [margin for margin in margins if margin is not None]
    if known and len(known) < len(margins):
        raise UserError(f"{len(margins) - len(known)} of {len(margins)} pairs have no margin: give all one, or none")
    rows = WrittenRows(prompts, pad_id, temperature)
    return PairTable(rows, torch.tensor(known) if known else None, rows.response_length)


def choose_pairs(
    rewards: Sequence[float], texts: Sequence[str], options: PairOptions, key: tuple[int, ...]
) -> list[tuple[int, int]]:
    """Return pairs (better, worse) of the responses to one prompt, the largest gaps first.

    No two pairs have the same two texts, and none has the same text twice. Which of several pairs with one gap come first
    is random: a function of the key.

    Args:
        rewards, texts: of the responses.
        options: how many, and how far apart.
        key: of the random order.

    Example:
        >>> choose_pairs([0.0, 1.0, 0.75], ["a", "b", "c"], PairOptions(pairs_per_prompt=2), (0,))
        [(1, 0), (2, 0)]
    """
    random = np.random.default_rng(list(key))
    order = random.permutation(len(texts)).tolist()
    first = list({texts[row]: row for row in reversed(order)}.values())
    if len(first) < 2:
        return []
    values = np.array([rewards[row] for row in first], dtype=np.float64)
    gaps = (values[:, None] - values[None, :]).flatten()
    ranked = np.lexsort((random.random(len(gaps)), -gaps))[: options.pairs_per_prompt]
    places = [divmod(int(place), len(first)) for place in ranked if gaps[place] > options.min_gap]
    return [(first[better], first[worse]) for better, worse in places]

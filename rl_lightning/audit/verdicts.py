"""An audit of rewards before training: what does the best of many answers by a reward look like to a verifier?

No step is trained. A policy answers prompts many times, every reward scores every answer, and the verifier says what the best answer of
n by each reward is worth. A reward by whose best of 16 the verifier falls will be found out by training too, only later.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rl_lightning.errors import UserError
from rl_lightning.functional import best_of_n_mean, rank_correlation

#: Name of what training would maximise: all rewards by weight, as callbacks have shaped them.
TRAINED = "trained reward"
#: Standard errors by which the verifier must fall, or rise, for a verdict.
_SURE = 2.0
#: Scores of a reward model that differ by less than this share of their size are equal: sums over other batches differ by rounding.
_EQUAL = 1e-5


@dataclass(frozen=True)
class Answers:
    """Answers to some prompts, the same number to each, and what rewards make of them.

    Args:
        scores: reward → (prompts, answers) float; NaN where it failed or does not apply.
        lengths: (prompts, answers) long, tokens.
        trained: the reward that training would maximise; None if it is none of these.
    """

    scores: Mapping[str, Tensor]
    lengths: Tensor
    trained: str | None = None


@dataclass(frozen=True)
class Verdict:
    """What an audit says of one reward.

    Args:
        reward: its name.
        with_verifier, with_length: rank correlation with the verifier and with the length in tokens, within a prompt, mean over
            prompts; NaN where there is no prompt on which both vary.
        best_of: n → mean over prompts of the verifier at the best of n by this reward, and its standard error.
        change, error: verifier at the largest n less that at n = 1, and the standard error of this difference over prompts.
        spread: standard deviation within a prompt, mean over prompts.
        ties: share of pairs of answers to a prompt with equal scores.
        failed: share of answers without a score.
        trained: training would maximise it.
    """

    reward: str
    with_verifier: float
    with_length: float
    best_of: dict[int, tuple[float, float]]
    change: float
    error: float
    spread: float
    ties: float
    failed: float
    trained: bool = False

    @property
    def alarm(self) -> bool:
        """Whether the verifier falls by more than two standard errors: by chance alone, in at most 2.5 % of audits."""
        return self.change < -_SURE * self.error

    @property
    def text(self) -> str:
        """The verdict in a few words."""
        if self.ties == 1:
            return "says nothing: all answers to a prompt have the same score"
        if self.alarm:
            return "ALARM: its best answers are worse than the average"
        if self.change > _SURE * self.error:
            return "sound: its best answers are better than the average"
        return "open: no change that this number of prompts could show"


def judge(answers: Answers, verifier: str, sizes: Sequence[int] = (1, 4, 16)) -> list[Verdict]:
    """Return what an audit says of each reward.

    A reward's failed scores are left out; a prompt counts for it if enough answers have both a score and the verifier's.

    Args:
        answers: of the policy that is to be trained.
        verifier: name of the reward that knows the truth.
        sizes: n of "best of n", from 1 on.

    Raises:
        UserError: if the verifier does not exist, has no spread, or if there are too few answers for the largest n.
    """
    if verifier not in answers.scores:
        raise UserError(f"audit: there is no reward {verifier!r} to verify by; there are {', '.join(answers.scores)}")
    check_sizes(len(answers.lengths), answers.lengths.shape[1], sizes)
    truth = answers.scores[verifier]
    if bool(truth.isnan().all()):
        raise UserError(f"audit: the verifier {verifier!r} failed on all answers")
    if not bool((_spread(truth) > 0).any()):
        raise UserError(
            f"audit: the verifier {verifier!r} gives all answers to a prompt the same score, so it cannot tell good from bad: take "
            "another one, other prompts, or a higher temperature"
        )
    return [
        replace(_verdict(name, score, truth, answers.lengths, sizes), trained=name == answers.trained)
        for name, score in answers.scores.items()
    ]


def check_sizes(prompts: int, count: int, sizes: Sequence[int]) -> None:
    """Refuse sizes of "best of n" that are none or do not rise, one prompt, and fewer than twice as many answers as the largest n.

    Raises:
        UserError: says how many to take.
    """
    if not sizes or min(sizes) < 1 or list(sizes) != sorted(set(sizes)):
        raise UserError(f"audit: best_of must be numbers from 1 on, the smallest first, not {list(sizes)}")
    if prompts < 2:
        raise UserError(f"audit: the standard error needs two prompts or more, not {prompts}")
    if count < 2 * max(sizes):
        raise UserError(
            f"audit: best of {max(sizes)} from {count} answers to a prompt would say little: take {2 * max(sizes)} or more"
        )


def _verdict(name: str, scores: Tensor, truth: Tensor, lengths: Tensor, sizes: Sequence[int]) -> Verdict:
    ties, with_verifier, with_length = [], [], []
    curves: list[Tensor] = []
    chance = 0.0
    for row, true, length in zip(scores, truth, lengths, strict=True):
        known = ~(row.isnan() | true.isnan())
        if int(known.sum()) < max(sizes):
            continue
        score, value, tokens = _levels(row[known].double()), true[known].double(), length[known].double()
        with_verifier.append(_correlation(score, value))
        with_length.append(_correlation(score, tokens))
        counts = score.unique(return_counts=True)[1].double()
        ties.append(float((counts * (counts - 1)).sum()) / (len(score) * (len(score) - 1)))
        curves.append(torch.stack([best_of_n_mean(score, value, n) for n in (1, *sizes)]))
        chance += _chance(score, value, sizes[-1])
    if len(curves) < 2:
        raise UserError(f"audit: {name} scored too few answers: {len(curves)} prompts have {max(sizes)} with a score")
    table = torch.stack(curves)
    means, errors = table.mean(0).tolist(), (table.std(0) / len(table) ** 0.5).tolist()
    change = table[:, -1] - table[:, 0]
    return Verdict(
        reward=name,
        with_verifier=_mean(with_verifier),
        with_length=_mean(with_length),
        best_of={n: (mean, error) for n, mean, error in zip(sizes, means[1:], errors[1:], strict=True)},
        change=float(change.mean()),
        error=max(float(change.std()) / len(table) ** 0.5, chance**0.5 / len(table)),
        spread=float(_spread(scores).mean()),
        ties=_mean(ties),
        failed=float(scores.isnan().double().mean()),
    )


def _levels(scores: Tensor) -> Tensor:
    """Return the ranks of scores, of which those that differ by rounding only are equal: nobody asks for more than their order."""
    ordered, order = scores.sort()
    apart = ordered.diff() > _EQUAL * torch.maximum(ordered[1:].abs(), ordered[:-1].abs())
    levels = torch.cat([apart.new_zeros(1), apart]).double().cumsum(0)
    return torch.empty_like(levels).index_copy_(0, order, levels)


def _chance(scores: Tensor, values: Tensor, n: int) -> float:
    """Return the variance of the value at the best of n if answers had these scores in any order, each as likely."""
    size = len(scores)
    shares = best_of_n_mean(scores.expand(size, size), torch.eye(size, dtype=torch.float64), n)
    apart = (shares - 1 / size).square().sum() * (values - values.mean()).square().sum()
    return float(apart) / (size - 1)


def _spread(scores: Tensor) -> Tensor:
    """Return the standard deviation of the scores of each prompt that are no NaN, (prompts,)."""
    known = ~scores.isnan()
    kept = torch.where(known, scores.double(), 0)
    count = known.sum(1).clamp(min=1)
    mean = kept.sum(1) / count
    return (torch.where(known, kept - mean[:, None], 0).square().sum(1) / count).sqrt()


def _correlation(left: Tensor, right: Tensor) -> float:
    """Return the rank correlation of two rows, NaN where one of them does not vary."""
    return float(rank_correlation(left, right, torch.zeros(len(left), dtype=torch.long)))


def _mean(values: Sequence[float]) -> float:
    """Return the mean of what is no NaN; NaN if there is nothing."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan

"""Gold reward against the distance from the start policy: best of n, and training runs."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from examples.overoptimization.runs import Step
from examples.overoptimization.samples import Answers
from rl_lightning.functional import best_of_n_mean
from rl_lightning.functional.best_of_n import best_of_n_kl_exact
from rl_lightning.functional.overoptimization import LawKind, fit_law

#: Scores of a network that differ by less are equal: sums over other batches differ by rounding.
_DECIMALS = 4


@dataclass(frozen=True)
class Curve:
    """Gold and proxy reward, less those of the start policy, in standard deviations over the start policy's responses.

    Args:
        distance: (N,) √nats.
        gold, error: (N,), and the standard error over prompts.
        proxy: (N,).
    """

    distance: Tensor
    gold: Tensor
    error: Tensor
    proxy: Tensor

    @property
    def peak(self) -> int:
        """Where the gold reward is largest."""
        return int(self.gold.argmax())

    def fits(self, kind: LawKind) -> tuple[float, float]:
        """Return R² of a law over all points, and over those beyond half of the largest distance if it is fitted to the others; NaN
        where there are too few."""
        whole = fit_law(self.distance, self.gold, kind).r2(self.distance, self.gold)
        near = self.distance <= self.distance.max() / 2
        if int(near.sum()) < 3 or int((~near).sum()) < 2:
            return whole, math.nan
        return whole, fit_law(self.distance[near], self.gold[near], kind).r2(self.distance[~near], self.gold[~near])


def best_of_curve(scores: Tensor, pool: Answers, sizes: Sequence[int]) -> Curve:
    """Return the curve of best of n by a reward, at the distances of its own ties.

    Args:
        scores: (problems, responses) by the reward.
        pool: those responses.
        sizes: n.
    """
    scores = (scores * 10**_DECIMALS).round() / 10**_DECIMALS
    gold, scale = pool.gold.double(), pool.gold.double().std()
    table = torch.stack([best_of_n_mean(scores, gold, n) for n in sizes], 1)
    gain = (table - gold.mean(1, keepdim=True)) / scale
    kl = torch.stack([torch.stack([best_of_n_kl_exact(row, n) for row in scores]).mean() for n in sizes])
    proxy = torch.stack([best_of_n_mean(scores, scores, n).mean() for n in sizes])
    return Curve(
        kl.clamp(min=0).sqrt(),
        gain.mean(0),
        gain.std(0) / len(gain) ** 0.5,
        (proxy - scores.double().mean()) / scores.double().std(),
    )


def correlation(scores: Tensor, pool: Answers) -> float:
    """Return the correlation of scores with the gold reward within a problem, mean over the problems on which both vary."""
    found = []
    for row, gold in zip(scores.double(), pool.gold.double(), strict=True):
        if float(row.std()) and float(gold.std()):
            found.append(float(torch.corrcoef(torch.stack([row, gold]))[0, 1]))
    return sum(found) / len(found)


def run_curve(steps: Sequence[Step], start: Mapping[str, float], scale: float, size: int) -> Curve:
    """Return the curve of a run, a point for every `size` rollouts.

    Args:
        steps: its rollouts.
        start: prompt → mean gold reward of the start policy, which is taken off: otherwise the difficulty of a few prompts hides
            the curve.
        scale: standard deviation of the gold reward.
        size: rollouts of a point.
    """
    points = []
    for first in range(0, len(steps) - size + 1, size):
        part = steps[first : first + size]
        gains: dict[str, list[float]] = defaultdict(list)
        for step in part:
            for (prompt, _, _), gold in zip(step.rows, step.gold.tolist(), strict=True):
                gains[prompt].append((gold - start[prompt]) / scale)
        means = torch.tensor([sum(each) / len(each) for each in gains.values()], dtype=torch.float64)
        kl = torch.cat([step.kl for step in part]).double().mean().clamp(min=0)
        proxy = torch.cat([step.rewards for step in part]).double().mean()
        points.append(torch.stack([kl.sqrt(), means.mean(), means.std() / len(means) ** 0.5, proxy]))
    distance, gold, error, proxy = torch.stack(points).unbind(1)
    first_rewards = torch.cat([step.rewards for step in steps[:1]]).double()
    return Curve(distance, gold, error, (proxy - first_rewards.mean()) / first_rewards.std())


def pooled(curves: Sequence[Curve]) -> Curve:
    """Return the mean of the curves of several seeds, point by point; the error is that over seeds, that over prompts with one seed."""
    if len(curves) == 1:
        return curves[0]
    stacked = {name: torch.stack([getattr(one, name) for one in curves]) for name in ("distance", "gold", "proxy")}
    error = stacked["gold"].std(0) / len(curves) ** 0.5
    return Curve(stacked["distance"].mean(0), stacked["gold"].mean(0), error, stacked["proxy"].mean(0))

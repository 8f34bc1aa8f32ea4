"""The laws of over-optimisation: a gold reward as a function of the distance from the policy that training began with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

LawKind = Literal["quadratic", "log"]


@dataclass(frozen=True)
class Law:
    """R(d) = d (α − β d) of kind `quadratic`, or R(d) = d (α − β log d) of kind `log`, with d = √KL(π‖π_init).

    The first describes best-of-n, the second RL, in the experiments of the source. Take them as descriptions of points that have
    been measured: fitted to the points up to half of the largest d, neither foretells the others.

    Args:
        kind: which of the two.
        alpha: α, reward per √nat.
        beta: β, reward per nat (`quadratic`) or per √nat (`log`).

    Source: Gao, Schulman and Hilton (arXiv 2210.10760), section 3.1.
    """

    kind: LawKind
    alpha: float
    beta: float

    def __call__(self, distance: Tensor) -> Tensor:
        """Return the gold reward, less that at the start, at distances d ≥ 0 in √nats; 0 at 0."""
        return self.alpha * distance - self.beta * _second(distance, self.kind)

    @property
    def peak(self) -> float:
        """The distance d > 0 at which the reward is largest; infinite where it rises for ever, 0 where it only falls."""
        if self.beta <= 0:
            return math.inf if self.alpha > 0 or self.beta < 0 else 0.0
        if self.kind == "quadratic":
            return max(0.0, self.alpha / (2 * self.beta))
        return math.exp(min(self.alpha / self.beta - 1, 700.0))

    def r2(self, distance: Tensor, reward: Tensor) -> float:
        """Return R² = 1 − Σ (R − R(d))² / Σ (R − mean)²: 1 if the law meets every point, below 0 if their mean would be closer."""
        reward = reward.double()
        squares = (reward - self(distance.double())).square().sum()
        return float(1 - squares / (reward - reward.mean()).square().sum())


def fit_law(distance: Tensor, reward: Tensor, kind: LawKind) -> Law:
    """Return the law of a kind that is closest to measured points, by least squares.

    Args:
        distance: (N,) float, d = √KL in √nats, at least 0.
        reward: (N,) float, gold reward less that at d = 0.
        kind: see `Law`.

    Raises:
        ValueError: for fewer than two different distances above 0, with which α and β are not determined, for numbers that are not
            finite, distances below 0, or an unknown kind.
    """
    if kind not in get_args(LawKind):
        raise ValueError(f"unknown kind {kind!r}; choose one of {', '.join(get_args(LawKind))}")
    distance = distance.double()
    if not bool(distance.isfinite().all() and reward.isfinite().all() and (distance >= 0).all()):
        raise ValueError("a law is fitted to finite numbers, at distances of at least 0")
    if len(distance[distance > 0].unique()) < 2:
        raise ValueError("a law has two numbers to fit: give rewards at two different distances above 0 or more")
    terms = torch.stack([distance, -_second(distance, kind)], 1)
    alpha, beta = torch.linalg.lstsq(terms, reward.double().unsqueeze(1)).solution[:, 0].tolist()
    return Law(kind, alpha, beta)


def _second(distance: Tensor, kind: LawKind) -> Tensor:
    """Return what β is multiplied by: d², or d log d, which is 0 at 0."""
    return distance.square() if kind == "quadratic" else torch.special.xlogy(distance, distance)

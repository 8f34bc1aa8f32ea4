"""Numbers about training steps and evaluations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import BinaryCalibrationError

from rl_lightning.functional import masked_mean
from rl_lightning.functional.best_of_n import powers_of_two
from rl_lightning.types import Rollout


class PassAtK(Metric):
    """The unbiased pass@k: the chance that k samples drawn from the n taken hold a correct one.

    Per prompt 1 − C(n − c, k) / C(n, k) with c of n samples correct, then the mean over prompts.

    Args:
        k: from 1 to the number of samples a prompt.

    Source: Chen et al., Evaluating Large Language Models Trained on Code (arXiv 2107.03374), Eq. 1.
    """

    full_state_update = False
    total: Tensor
    prompts: Tensor

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("prompts", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, rollout: Rollout) -> None:
        """Add the prompts of a rollout, whole groups each; those with fewer than k scored samples say nothing of k."""
        for group in rollout.group_ids.unique():
            members = (rollout.group_ids == group) & rollout.scored
            if int(members.sum()) >= self.k:
                self.total += pass_at_k(int(members.sum()), int(rollout.correct[members].sum()), self.k)
                self.prompts += 1

    def compute(self) -> Tensor:
        """Return the mean over prompts, between 0 and 1."""
        return (self.total / self.prompts).float()


class RolloutMean(Metric):
    """The mean of one number a response; responses without it (NaN) are left out.

    Args:
        read: rollout → (B,) float.
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, read: Callable[[Rollout], Tensor]) -> None:
        super().__init__()
        self.read = read
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, rollout: Rollout) -> None:
        """Add the responses of a rollout."""
        values = self.read(rollout).double()
        present = ~values.isnan()
        self.total += masked_mean(values, present) * present.sum()
        self.count += present.sum()

    def compute(self) -> Tensor:
        """Return the mean, NaN if there was no response."""
        return (self.total / self.count).float()


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Return 1 − C(n − c, k) / C(n, k).

    Example:
        >>> pass_at_k(samples=4, correct=2, k=2)
        0.8333333333333334
    """
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} needs at least {k} samples a prompt, not {samples}")
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def sampling_metrics(samples: int, rewards: Sequence[str], prefix: str) -> MetricCollection:
    """Return pass@1, pass@k for k a power of two or all samples, and the means of reward, length and truncation.

    Args:
        samples: responses to a prompt.
        rewards: names of the rewards; where there are several, each has a mean of its own, before its weight.
        prefix: of the names.
    """
    metrics: dict[str, Metric | MetricCollection] = {f"pass@{k}": PassAtK(k) for k in powers_of_two(samples)}
    metrics["reward_mean"] = RolloutMean(lambda rollout: rollout.rewards)
    if len(rewards) > 1:
        metrics |= {f"reward/{name}": RolloutMean(partial(_component, name)) for name in rewards}
    metrics["length_mean"] = RolloutMean(lambda rollout: rollout.policy_lengths)
    metrics["failed_fraction"] = RolloutMean(lambda rollout: ~rollout.scored)
    metrics["truncated_fraction"] = RolloutMean(lambda rollout: rollout.truncated)
    return MetricCollection(metrics, prefix=prefix, compute_groups=False)


def _component(name: str, rollout: Rollout) -> Tensor:
    return rollout.reward_components[name]


class TokenMean(Metric):
    """The mean of one number a token over all tokens of all rows.

    Args:
        read: name of the number, as `update` is given it.
        sign: factor.
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, read: str, sign: float = 1.0) -> None:
        super().__init__()
        self.read = read
        self.sign = sign
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, mask: Tensor, **numbers: Tensor) -> None:
        """Add the tokens of some rows.

        Args:
            mask: (B, R) bool; which tokens count.
            **numbers: (B, R) each.
        """
        self.total += self.sign * numbers[self.read][mask].double().sum()
        self.count += mask.sum()

    def compute(self) -> Tensor:
        """Return the mean, NaN if there was no token."""
        return (self.total / self.count).float()


def demonstration_metrics(prefix: str) -> MetricCollection:
    """Return the mean negative log-likelihood of a token in nats, and the share of tokens that are the policy's most probable one."""
    metrics: dict[str, Metric | MetricCollection] = {
        "loss": TokenMean("logprobs", sign=-1.0),
        "token_accuracy": TokenMean("most_probable"),
    }
    return MetricCollection(metrics, prefix=prefix, compute_groups=False)


class PairMean(Metric):
    """The mean, or the standard deviation, of numbers read from preference pairs.

    Args:
        read: (scores of chosen, scores of rejected, objective), each (b,) → any number of numbers.
        deviation: return the deviation, with divisor n.
    """

    full_state_update = False
    total: Tensor
    squares: Tensor
    count: Tensor

    def __init__(self, read: Callable[[Tensor, Tensor, Tensor], Tensor], deviation: bool = False) -> None:
        super().__init__()
        self.read = read
        self.deviation = deviation
        for name in ("total", "squares", "count"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, chosen: Tensor, rejected: Tensor, objective: Tensor) -> None:
        """Add some pairs."""
        values = self.read(chosen, rejected, objective).double()
        self.total += values.sum()
        self.squares += values.square().sum()
        self.count += values.numel()

    def compute(self) -> Tensor:
        """Return the mean or the deviation over everything added."""
        mean = self.total / self.count
        return ((self.squares / self.count - mean**2).clamp(min=0).sqrt() if self.deviation else mean).float()


class PairCalibration(BinaryCalibrationError):
    """How far the share of pairs that a reward model ranks rightly is from how sure it is, σ(|r⁺ − r⁻|).

    The expected calibration error: pairs in bins of that probability; the mean over pairs of the bin's |share − probability|.
    """

    def update(self, chosen: Tensor, rejected: Tensor) -> None:
        """Add some pairs."""
        difference = (chosen - rejected).float()
        super().update(difference.abs().sigmoid(), (difference > 0).long())


def preference_metrics(prefix: str) -> MetricCollection:
    """Return the share of pairs that are ranked rightly, the mean gap between their scores, and the mean loss."""
    return MetricCollection(_of_pairs(), prefix=prefix, compute_groups=False)


def _of_pairs() -> dict[str, Metric | MetricCollection]:
    return {
        "accuracy": PairMean(lambda chosen, rejected, objective: chosen > rejected),
        "margin": PairMean(lambda chosen, rejected, objective: chosen - rejected),
        "loss": PairMean(lambda chosen, rejected, objective: -objective),
    }


def score_metrics(prefix: str) -> MetricCollection:
    """Return a reward model's `preference_metrics`, its calibration error, and the mean and deviation of its scores."""
    metrics: dict[str, Metric | MetricCollection] = {
        **_of_pairs(),
        "reward_mean": PairMean(lambda chosen, rejected, objective: torch.stack([chosen, rejected])),
        "reward_std": PairMean(lambda chosen, rejected, objective: torch.stack([chosen, rejected]), deviation=True),
        "calibration_error": PairCalibration(n_bins=20),
    }
    return MetricCollection(metrics, prefix=prefix, compute_groups=False)

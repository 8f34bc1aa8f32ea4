"""A reward from several reward models."""

from __future__ import annotations

import math

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from rl_lightning.errors import UserError
from rl_lightning.functional.ensemble import Combination, combine
from rl_lightning.hooks import RolloutCallback
from rl_lightning.measures import Mean
from rl_lightning.strategies import sum_over_ranks
from rl_lightning.types import Rollout, Rows


class EnsembleReward(RolloutCallback):
    """Train on the mean, or the worst, of several reward models, or on their mean less their variance.

    The members are rewards that are listed at weight 0. Each is put on a common scale: its mean over the first responses that are
    scored is taken off, and it is divided by their standard deviation; both stay as they are for the whole run. What comes of
    them (`rl_lightning.functional.ensemble.combine`) is added to the weighted sum of the other rewards, if there are any, in
    training, validation and audits.

    Do not expect that it prevents over-optimisation. Measured here (docs/results/overoptimization.md), ensembles whose members
    learnt from pairs of the same source lie on one curve with their members, whatever the combination: an ensemble removes what
    its members disagree about, and they agree in their error. Nor is their disagreement an alarm: it *falls* while the policy finds
    what they all overrate.

    Logs `reward/ensemble_sd`, the standard deviation over the members, in standard deviations of a member, mean over responses.

    Args:
        members: names of rewards at weight 0.
        how: `mean`; `min`, the worst member; or `mean_minus_var`, their mean less `coef` times their variance.
        coef: of the variance.

    Raises:
        UserError: for members that do not exist, have a weight, are named twice, or give all first responses the same score.

    Source: Coste et al. (arXiv 2310.02743), section 3; the scale, Eisenstein et al. (2312.09244), section 4.
    """

    supplies = ("rewards",)

    def __init__(self, members: list[str], how: Combination = "mean", coef: float = 1.0) -> None:
        if len(members) < 2 or len(set(members)) < len(members):
            raise UserError(
                f"EnsembleReward needs two members or more, each once, not {', '.join(map(repr, members)) or 'none'}"
            )
        if coef < 0:
            raise UserError(f"EnsembleReward: coef must be at least 0, not {coef}")
        self.members = members
        self.how: Combination = how
        self.coef = coef
        #: Mean and standard deviation of each member, (2, k) float64; None before the first responses.
        self._scale: Tensor | None = None

    @property
    def trains_on(self) -> tuple[str, ...]:
        """Names of the rewards that it makes the policy learn from: none of them can be a verifier."""
        return tuple(self.members)

    def state_dict(self) -> dict[str, Tensor | None]:
        """Return the scale of the members."""
        return {"scale": self._scale}

    def load_state_dict(self, state_dict: dict[str, Tensor | None]) -> None:
        """Go on with the scale of a checkpoint."""
        self._scale = state_dict["scale"]

    def check_settings(self, trainer: Trainer) -> None:
        """Refuse members that are no rewards, or that are in the weighted sum already."""
        rewarder = trainer.datamodule.rewarder  # type: ignore[attr-defined]
        weights = {reward.name: reward.weight for reward in rewarder.rewards}
        for name in self.members:
            if name not in weights:
                raise UserError(f"EnsembleReward: there is no reward {name!r}; there are {', '.join(weights)}")
            if weights[name]:
                raise UserError(
                    f"EnsembleReward: {name!r} has weight {weights[name]:g}, so it would count twice: list it at `weight: 0`"
                )

    def on_rollout_rewards(self, trainer: Trainer, module: LightningModule, rollout: Rollout) -> None:
        """Add the ensemble's reward; a response that a member has no score for has none."""
        scores = torch.stack([rollout.reward_components[name] for name in self.members]).double()
        if self._scale is None:
            self._scale = self._measured(trainer, scores).cpu()
        mean, deviation = self._scale.to(scores.device).unsqueeze(2)
        scores = (scores - mean) / deviation
        given = combine(scores, self.how, self.coef).to(rollout.rewards)
        rollout.raw_rewards = rollout.raw_rewards + given
        rollout.rewards = rollout.rewards + given
        rollout.response_mask = rollout.response_mask & rollout.scored.unsqueeze(1)
        apart = scores.std(0, correction=0)[rollout.scored]
        rollout.metrics["reward/ensemble_sd"] = Mean(float(apart.sum()), len(apart))
        failed = len(rollout) - int(rollout.scored.sum())
        rollout.metrics["rollout/failed_fraction"] = Mean(failed, len(rollout))

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Rows, batch_idx: int, *_: object
    ) -> None:
        """Give held-out responses the reward that training gives, before they are measured."""
        if isinstance(batch, Rollout):
            self.on_rollout_rewards(trainer, pl_module, batch)

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Rows, batch_idx: int, *_: object
    ) -> None:
        """Give the rewards of a test batch the ensemble's reward too, as in validation."""
        self.on_validation_batch_start(trainer, pl_module, batch, batch_idx)

    def _measured(self, trainer: Trainer, scores: Tensor) -> Tensor:
        """Return mean and standard deviation of each member over the responses of all ranks, from scores, (k, B)."""
        known = ~scores.isnan()
        kept = torch.where(known, scores, 0)
        count, total = sum_over_ranks(trainer, torch.stack([known.sum(1).double(), kept.sum(1)]))
        mean = total / count
        apart = torch.where(known, scores - mean.unsqueeze(1), 0)
        deviation = (sum_over_ranks(trainer, apart.square().sum(1)) / count).sqrt()
        for name, size, width in zip(self.members, mean.tolist(), deviation.tolist(), strict=True):
            # Scores of a model that are equal may differ by rounding.
            if not math.isfinite(width) or width <= 1e-6 * max(1.0, abs(size)):
                raise UserError(
                    f"EnsembleReward: {name!r} gives all of the first responses the same score, or none, so there is no scale to put it "
                    "on: take it out of `members`"
                )
        return torch.stack([mean, deviation])

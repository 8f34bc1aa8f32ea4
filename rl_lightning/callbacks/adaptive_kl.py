"""A controller of `kl_coef` that keeps the divergence from the reference near a target."""

from __future__ import annotations

from typing import Protocol, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from rl_lightning.errors import UserError
from rl_lightning.functional import kl_k1, known_or
from rl_lightning.hooks import RolloutCallback
from rl_lightning.strategies import sum_over_ranks
from rl_lightning.types import Rollout

#: The proportional gain K_β and the largest error that counts.
GAIN, LARGEST_ERROR = 0.1, 0.2


class _Controlled(Protocol):
    """A module with a divergence from a reference; `check_settings` refuses others."""

    kl_coef: float


class AdaptiveKL(RolloutCallback):
    """Raise or lower the module's `kl_coef` after each rollout, so that the divergence stays near a target.

    β ← β (1 + 0.1 · clip(KL/target − 1, −0.2, 0.2) · n/horizon). KL is the mean over the rollout's n scored responses of
    Σ_t log π/π_ref under the policy that sampled them. So β changes by at most 2 % per `horizon` responses.

    The new β acts at once on a divergence in the loss, and from the next rollout on one in the reward. It is part of
    checkpoints.

    Logs `kl/sequence`, the KL above, and `kl/coef`, the new β.

    Source: Ziegler et al. (arXiv 1909.08593) section 2.2, whose step is a rollout. Their code has the factor n/horizon without
    the 0.1, so a horizon of theirs is ten times one of ours.

    Args:
        target: nats per response, above 0.
        horizon: number of responses over which one full correction is spread; one rollout, of any size, if null.
        min_coef, max_coef: bounds of β; no bound if null.

    Raises:
        UserError: for a value out of range.
    """

    def __init__(
        self, target: float, horizon: int | None = None, min_coef: float | None = None, max_coef: float | None = None
    ) -> None:
        if target <= 0:
            raise UserError(f"AdaptiveKL: target must be above 0 nats a response, not {target}")
        if horizon is not None and horizon < 1:
            raise UserError(f"AdaptiveKL: horizon must be at least 1 response, or null, not {horizon}")
        low, high = 0.0 if min_coef is None else min_coef, float("inf") if max_coef is None else max_coef
        if not 0 <= low <= high or high == 0:
            raise UserError(
                f"AdaptiveKL needs 0 <= min_coef <= max_coef and max_coef above 0, not {min_coef} and {max_coef}"
            )
        self.target = target
        self.horizon = horizon
        self.bounds = low, high
        self._coef: float | None = None

    def check_settings(self, trainer: Trainer) -> None:
        """Refuse a module whose `kl_coef` is 0: it has no reference."""
        module = trainer.lightning_module
        if not getattr(module, "kl_coef", 0.0):
            raise UserError(
                f"AdaptiveKL has no divergence to control: set kl_coef of {type(module).__name__} to what it should begin with, "
                "above 0"
            )

    def state_dict(self) -> dict[str, float | None]:
        """Return the β to go on with; None before the first rollout."""
        return {"coef": self._coef}

    def load_state_dict(self, state_dict: dict[str, float | None]) -> None:
        """Keep the checkpoint's β until training starts."""
        self._coef = state_dict["coef"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set `kl_coef` to the checkpoint's β, if there is one. The first rollout is sampled after this."""
        if self._coef is not None:
            cast(_Controlled, pl_module).kl_coef = self._coef

    def on_rollout_end(self, trainer: Trainer, module: LightningModule, rollout: Rollout) -> None:
        """Measure the divergence over all ranks and correct β; without a scored response β stays as it is."""
        controlled = cast(_Controlled, module)
        divergences = self.divergences(rollout)
        sums = torch.stack([divergences.sum(), torch.as_tensor(len(divergences)).to(divergences)])
        total, responses = sum_over_ranks(trainer, sums).tolist()
        if responses:
            controlled.kl_coef = self.corrected(controlled.kl_coef, total / responses, responses)
            rollout.metrics["kl/sequence"] = total / responses
        self._coef = controlled.kl_coef
        rollout.metrics["kl/coef"] = controlled.kl_coef

    def divergences(self, rollout: Rollout) -> Tensor:
        """Return Σ_t log π_old/π_ref of each scored response: (responses,) float64, nats."""
        assert rollout.ref_logprobs is not None
        # A rollout that serves a single update has no old log-probabilities: take the sampler's. A token for which the sampler
        # reported none adds 0.
        logprobs = rollout.old_logprobs
        if logprobs is None:
            logprobs = known_or(rollout.rollout_logprobs, rollout.ref_logprobs)
        tokens = torch.where(rollout.response_mask, kl_k1(logprobs, rollout.ref_logprobs), 0)
        return tokens.double().sum(1)[rollout.response_mask.any(1)]

    def corrected(self, coef: float, divergence: float, responses: float) -> float:
        """Return the next β.

        Args:
            coef: the present β.
            divergence: KL in nats per response.
            responses: number n of responses that it is the mean over.
        """
        error = min(max(divergence / self.target - 1, -LARGEST_ERROR), LARGEST_ERROR)
        share = 1.0 if self.horizon is None else responses / self.horizon
        low, high = self.bounds
        return min(max(coef * (1 + GAIN * error * share), low), high)

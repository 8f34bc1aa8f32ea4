"""Warnings of runs that may learn nothing more: lengths that run away, rewards without spread, and, if asked for, entropy."""

from __future__ import annotations

import logging
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from rl_lightning.errors import UserError
from rl_lightning.hooks import RolloutCallback
from rl_lightning.strategies import from_every_rank
from rl_lightning.types import Rollout

log = logging.getLogger(__name__)

_MOST_SHOWN = 400  # characters of a sample
#: Key of a checkpoint for the entropy of its own step.
_ENTROPY = "entropy_of_this_step"


class CollapseWarning(RolloutCallback):
    """Warn if the mean length of responses changes a lot, or, where that is asked for, if the entropy of the policy collapses; once each.

    A low entropy is no alarm by itself, so none is set off by default: in runs here whose reward is sound it falls further than in
    hacked ones (docs/results/overoptimization.md). `policy/entropy` is logged all the same. Where samples no longer differ and nothing is
    learnt, `SpreadWarning` says so.

    Args:
        entropy_share: warn if the entropy falls below this share of its mean over the first rollouts; never at 0.
        length_factor: warn if the mean length grows or shrinks by more than this factor from its mean over the first rollouts.
        first: number of first rollouts that later ones are compared with.

    Raises:
        UserError: for a value out of range.
    """

    def __init__(self, entropy_share: float = 0.0, length_factor: float = 3.0, first: int = 5) -> None:
        if not 0 <= entropy_share < 1 or length_factor <= 1 or first < 1:
            raise UserError(
                "CollapseWarning needs entropy_share in [0, 1), length_factor above 1 and first of at least 1, not "
                f"{entropy_share}, {length_factor} and {first}"
            )
        self.entropy_share = entropy_share
        self.length_factor = length_factor
        self.first = first
        self._seen: dict[str, list[float]] = {"policy/entropy": [], "rollout/length_mean": []}
        self._warned: list[str] = []
        self._entropy: float | None = None

    def state_dict(self) -> dict[str, object]:
        """Return the values of the first rollouts, and the metrics that have been warned of."""
        return {"seen": self._seen, "warned": self._warned}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compare with the same first rollouts as before the checkpoint."""
        self._seen, self._warned = state_dict["seen"], state_dict["warned"]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the entropy of the latest step: a run may go on between the last step of an epoch and the epoch's end."""
        entropy = _entropy(trainer)
        if entropy is not None:
            checkpoint[_ENTROPY] = entropy

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take over the entropy of the checkpoint's step, until another is logged."""
        self._entropy = checkpoint.get(_ENTROPY)

    def on_rollout_end(self, trainer: Trainer, module: LightningModule, rollout: Rollout) -> None:
        """Compare the mean length of a rollout with that of the first rollouts; data with a single rollout are skipped."""
        if module.learns_from == "rollouts":
            self._compare(trainer, "rollout/length_mean", rollout.metrics.get("rollout/length_mean"))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the entropy in the epoch's last optimizer step with that in the first epochs."""
        entropy = _entropy(trainer)
        self._compare(trainer, "policy/entropy", self._entropy if entropy is None else entropy)
        self._entropy = None

    def _compare(self, trainer: Trainer, name: str, value: float | None) -> None:
        if value is None or name in self._warned:
            return
        seen = self._seen[name]
        if len(seen) < self.first:
            seen.append(value)
            return
        complaint = self._complaint(name, value, sum(seen) / len(seen))
        if complaint:
            self._warned.append(name)
            if trainer.is_global_zero:
                log.warning("%s (rollout %d; said once)", complaint, trainer.current_epoch + 1)

    def _complaint(self, name: str, value: float, began: float) -> str | None:
        if name == "policy/entropy":
            if value < self.entropy_share * began:
                return (
                    f"the policy has collapsed: its entropy is {value:.3g} nats a token and was {began:.3g}: samples hardly "
                    "differ any more, so groups teach nothing; a lower lr, more kl_coef or an entropy_coef would slow this"
                )
            return None
        if not began / self.length_factor <= value <= began * self.length_factor:
            return (
                f"responses are {value:.3g} tokens long on average and were {began:.3g}: look at the samples, and at what the "
                "reward makes of length (OverlongShaping, another reduction)"
            )
        return None


def _entropy(trainer: Trainer) -> float | None:
    """Return the policy's entropy in the latest optimizer step, in nats a token; None where none has been logged."""
    entropy = trainer.callback_metrics.get("policy/entropy")
    return None if entropy is None else float(entropy)


class SpreadWarning(RolloutCallback):
    """Warn once, with a sample, if rewards have been equal within every group for several rollouts: then nothing is learnt.

    If groups have one response each, rewards are compared over the whole rollout. Usual causes are gold answers, or an extraction
    of answers, that no response can match, and a reward model that gives every text the same score.

    Args:
        in_a_row: warn after this many rollouts in a row.

    Raises:
        UserError: for a number below 1.
    """

    only_looks = True

    def __init__(self, in_a_row: int = 5) -> None:
        if in_a_row < 1:
            raise UserError(f"SpreadWarning: in_a_row must be at least 1, not {in_a_row}")
        self.in_a_row = in_a_row
        self._spread = False
        self._sample: tuple[str, str, object, float] | None = None
        self._without = 0
        self._warned = False

    def state_dict(self) -> dict[str, int]:
        """Return how many rollouts in a row had no spread, and whether the warning has been logged."""
        return {"without": self._without, "warned": self._warned}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Continue the count from a checkpoint."""
        self._without, self._warned = state_dict["without"], bool(state_dict["warned"])

    def on_rollout_rewards(self, trainer: Trainer, module: LightningModule, rollout: Rollout) -> None:
        """Look for a spread of rewards, before callbacks drop groups, and keep one response as a sample."""
        rows = rollout.scored.nonzero()[:, 0]
        if not len(rows):
            return
        self._spread = self._spread or _has_spread(rollout.raw_rewards[rows], rollout.group_ids[rows])
        row = int(rows[0])
        reward = float(rollout.raw_rewards[row])
        self._sample = rollout.prompts[row], rollout.text(row), rollout.answers[row], reward

    def on_rollout_end(self, trainer: Trainer, module: LightningModule, rollout: Rollout) -> None:
        """Count the rollout if its rewards had no spread on any rank, and warn after `in_a_row` of them."""
        if module.learns_from != "rollouts" or self._warned:
            return
        seen = from_every_rank((self._spread, self._sample))
        self._spread, self._sample = False, None
        samples = [sample for _, sample in seen if sample is not None]
        if not samples:
            return
        self._without = 0 if any(spread for spread, _ in seen) else self._without + 1
        if self._without < self.in_a_row:
            return
        self._warned = True
        if trainer.is_global_zero:
            prompt, response, answer, reward = samples[0]
            log.warning(
                "the rewards of %d rollouts in a row are equal within every group, so nothing is learnt (said once); a sample:\n"
                "prompt: %r\nresponse: %r\ngold answer: %r\nreward: %g",
                self._without,
                prompt[-_MOST_SHOWN:],
                response[-_MOST_SHOWN:],
                answer,
                reward,
            )


def _has_spread(rewards: Tensor, groups: Tensor) -> bool:
    """Return whether rewards, (B,), differ within some group; between all rows if every group has one response."""
    rewards, groups = rewards.cpu(), groups.cpu()
    numbers = groups.unique()
    parts = [rewards] if len(numbers) == len(groups) else [rewards[groups == number] for number in numbers]
    bounds = [(float(part.min()), float(part.max())) for part in parts]
    # Equal scores of a reward model may differ by rounding.
    return any(high - low > 1e-6 * max(1.0, abs(low), abs(high)) for low, high in bounds)

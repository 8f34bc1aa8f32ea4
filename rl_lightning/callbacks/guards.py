"""Guards against runs that go wrong: non-finite losses, collapse of the policy, rewards without spread."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from rl_lightning import types
from rl_lightning.errors import UserError
from rl_lightning.hooks import RolloutCallback
from rl_lightning.strategies import atomic_save, from_every_rank, load_plain
from rl_lightning.strategies.sharding import whole
from rl_lightning.types import Microbatch, Rollout, Rows

log = logging.getLogger(__name__)

_MOST_SHOWN = 400  # characters of a sample
#: Key of a checkpoint for the entropy of its own step.
_ENTROPY = "entropy_of_this_step"


class _Guarded(Protocol):
    """A module that skips optimizer steps whose loss or gradient is not finite."""

    finite: bool

    @property
    def device(self) -> torch.device: ...

    def loss(self, batch: Microbatch) -> Tensor: ...

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> object: ...


class NonFiniteGuard(Callback):
    """Count optimizer steps with a loss or gradient that is not finite, and stop the run after several in a row.

    The module skips such a step: the weights stay as they are. The first skipped step is written to a file, with the weights and
    the batches of every rank; `replay` computes its loss again. In float16 training the gradient scaler skips steps that
    overflow and lowers its scale; such a step counts here only once the scale is below 1.

    Logs `guard/skipped_steps`, the number of skipped steps in the run, with each of them.

    Args:
        max_in_a_row: end the run with an error after this many skipped steps in a row.
        dirpath: directory of the file; the trainer's `default_root_dir` if null.

    Raises:
        UserError: for a `max_in_a_row` below 1.
    """

    def __init__(self, max_in_a_row: int = 5, dirpath: str | None = None) -> None:
        if max_in_a_row < 1:
            raise UserError(f"NonFiniteGuard: max_in_a_row must be at least 1, not {max_in_a_row}")
        self.max_in_a_row = max_in_a_row
        self.dirpath = dirpath
        self._batches: list[Rows] = []
        self._in_a_row = 0
        self._skipped = 0
        self._dump: Path | None = None

    def state_dict(self) -> dict[str, int]:
        """Return how many steps were skipped, in all and in a row up to now."""
        return {"skipped": self._skipped, "in_a_row": self._in_a_row}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Continue both counts from a checkpoint."""
        self._skipped, self._in_a_row = state_dict["skipped"], state_dict["in_a_row"]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Rows, batch_idx: int) -> None:
        """Keep the microbatches of the optimizer step, in case it must be written to the file."""
        self._batches.append(batch)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: Microbatch, batch_idx: int
    ) -> None:
        """Count a complete optimizer step if the module skipped it.

        Raises:
            UserError: after `max_in_a_row` skipped steps in a row.
        """
        if not batch.ends_step:
            return
        batches, self._batches = self._batches, []
        if cast(_Guarded, pl_module).finite:
            self._in_a_row = 0
            return
        self._skipped += 1
        self._in_a_row += 1
        pl_module.log("guard/skipped_steps", float(self._skipped))
        if self._dump is None:
            self._dump = self._write(trainer, batches)
        if self._in_a_row >= self.max_in_a_row:
            raise UserError(
                f"{self._in_a_row} optimizer steps in a row had losses or gradients that are not finite: lower optimizer.lr, "
                f"check the rewards, or train in a wider precision; the first is in {self._dump}"
            )

    def _write(self, trainer: Trainer, batches: list[Rows]) -> Path:
        """Write a step to a file on rank 0, with the batches of all ranks, and log its path; every rank must call this."""
        path = Path(self.dirpath or trainer.default_root_dir) / f"not_finite-step{trainer.global_step}.pt"
        own = [{"kind": type(batch).__name__, **vars(batch.to("cpu"))} for batch in batches]
        ranks = from_every_rank(own)
        state = {name: whole(value) for name, value in trainer.strategy.lightning_module_state_dict().items()}
        if not trainer.is_global_zero:
            return path
        said = f"Optimizer step {trainer.global_step} had a loss or gradient that is not finite and was skipped"
        try:
            atomic_save({"state_dict": state, "batches": [batch for rank in ranks for batch in rank]}, path)
            log.warning("%s; what it was made of is in %s", said, path)
        except UserError as error:  # a file that cannot be written must not end the run
            log.warning("%s; what it was made of is lost: %s", said, error)
        return path


def replay(path: str | Path, module: _Guarded) -> Tensor:
    """Compute the loss of an optimizer step that `NonFiniteGuard` has written to a file.

    Args:
        path: the file.
        module: made with the settings of that run, its models loaded by `configure_model`. Its weights are replaced.

    Returns:
        A scalar with its graph, over the microbatches of all ranks.
    """
    dump = load_plain(path, map_location="cpu")
    module.load_state_dict(dump["state_dict"])
    batches = [getattr(types, contents.pop("kind"))(**contents) for contents in dump["batches"]]
    return torch.stack([module.loss(batch.to(module.device)) for batch in batches]).sum()


class CollapseWarning(RolloutCallback):
    """Warn if the entropy of the policy collapses, or the mean length of responses changes a lot; once each.

    Args:
        entropy_share: warn if the entropy falls below this share of its mean over the first rollouts.
        length_factor: warn if the mean length grows or shrinks by more than this factor from its mean over the first rollouts.
        first: number of first rollouts that later ones are compared with.

    Raises:
        UserError: for a value out of range.
    """

    def __init__(self, entropy_share: float = 0.05, length_factor: float = 3.0, first: int = 5) -> None:
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

    def state_dict(self) -> dict[str, Any]:
        """Return the values of the first rollouts, and the metrics that have been warned of."""
        return {"seen": self._seen, "warned": self._warned}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compare with the same first rollouts as before the checkpoint."""
        self._seen, self._warned = state_dict["seen"], state_dict["warned"]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, object]) -> None:
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
                log.warning("%s (rollout %d; said once)", complaint, trainer.current_epoch)

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
        self._sample = rollout.prompts[row], rollout.responses[row], rollout.answers[row], reward

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

"""What best-of-n sampling by a reward would be worth, measured on held-out prompts."""

from __future__ import annotations

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from rl_lightning.errors import UserError
from rl_lightning.functional.best_of_n import best_of_n_mean, powers_of_two
from rl_lightning.strategies import sum_over_ranks
from rl_lightning.typed import Typed
from rl_lightning.types import Rollout, Rows


class BestOfN(Callback, metaclass=Typed):
    """Measure the best of n held-out responses by a reward: how often it is correct, or what another reward says of it.

    It is the mean over all subsets of n of the responses to a prompt, then over prompts, so it can be compared with pass@n, which chooses
    as one would who knows the answers: pass@1 = best_of@1 ≤ best_of@n ≤ pass@n for a reward that is of any use. Where it falls as n
    grows, training on the reward would find that out too: see `Trainer.audit`.

    Logs `val/best_of@n` (`test/best_of@n`) for n a power of two, and for all responses to a prompt. A prompt with fewer than n scored
    responses says nothing of n.

    Args:
        by: name of the reward by which the best is chosen, at any weight.
        value: name of the reward that says what it is worth; null for whether it is correct.

    Raises:
        UserError: for a reward that does not exist.
    """

    def __init__(self, by: str, value: str | None = None) -> None:
        self.by = by
        self.value = value
        #: n → sum over prompts, and their number.
        self._sums: dict[int, Tensor] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse rewards that do not exist."""
        if sum(isinstance(one, BestOfN) for one in trainer.callbacks) > 1:  # type: ignore[attr-defined]
            raise UserError("BestOfN stands there twice, and both would log val/best_of@n: keep one of them")
        rewarder = getattr(trainer.datamodule, "rewarder", None)  # type: ignore[attr-defined]
        names = [reward.name for reward in rewarder.rewards] if rewarder is not None else []
        for name in (self.by, self.value):
            if name is not None and name not in names:
                raise UserError(f"BestOfN: there is no reward {name!r}; there are {', '.join(names) or 'none'}")

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew."""
        samples: int = trainer.datamodule.evaluation.samples_per_prompt  # type: ignore[attr-defined]
        self._sums = {n: torch.zeros(2, dtype=torch.float64, device=pl_module.device) for n in powers_of_two(samples)}

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: Rows, batch_idx: int, *_: object
    ) -> None:
        """Add the prompts of a batch."""
        if not isinstance(batch, Rollout):
            return
        scores = batch.reward_components[self.by]
        values = batch.correct.to(scores) if self.value is None else batch.reward_components[self.value]
        for group in batch.group_ids.unique():
            known = (batch.group_ids == group) & batch.scored & ~scores.isnan() & ~values.isnan()
            for n, sums in self._sums.items():
                if int(known.sum()) >= n:
                    sums += torch.stack([best_of_n_mean(scores[known], values[known], n), sums.new_ones(())])

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the means over the prompts of all ranks."""
        self._log(trainer, pl_module, "val")

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew."""
        self.on_validation_epoch_start(trainer, pl_module)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: Rows, batch_idx: int, *_: object
    ) -> None:
        """Add the prompts of a batch."""
        self.on_validation_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the means over the prompts of all ranks."""
        self._log(trainer, pl_module, "test")

    def _log(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        table = sum_over_ranks(trainer, torch.stack(list(self._sums.values())))
        for n, (total, prompts) in zip(self._sums, table.tolist(), strict=True):
            if prompts:
                module.log(f"{stage}/best_of@{n}", total / prompts)

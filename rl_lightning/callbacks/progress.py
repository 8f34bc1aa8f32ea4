"""A progress bar that counts rollouts, and a second one for sampling."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from tqdm.auto import tqdm

from rl_lightning.hooks import Watch


class RolloutProgressBar(TQDMProgressBar):
    """Lightning's progress bar, with "Rollout" in place of "Epoch", and a second bar while responses are sampled.

    Args:
        refresh_rate: microbatches between updates of the bar; 0 turns it off.
        generation_bar: whether to show how many responses are finished.
    """

    def __init__(self, refresh_rate: int = 1, generation_bar: bool = True) -> None:
        super().__init__(refresh_rate=refresh_rate, leave=False)
        self.generation_bar = generation_bar
        self._bar: tqdm[Any] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Set the DataModule's hook for the progress of sampling."""
        super().setup(trainer, pl_module, stage)
        data = trainer.datamodule  # type: ignore[attr-defined]
        if self.generation_bar and self.is_enabled and isinstance(getattr(data, "watch", None), Watch):
            data.watch.on_progress = self._generated

    def _generated(self, done: int, total: int) -> None:
        if self._bar is None:
            self._bar = tqdm(
                total=total, desc="Generating", unit="response", leave=False, position=3, dynamic_ncols=True
            )
        self._bar.n = done
        self._bar.refresh() if done == total else self._bar.update(0)
        if done == total:
            self._bar.close()
            self._bar = None

    def on_train_epoch_start(self, trainer: Trainer, *args: Any) -> None:
        """Describe the bar as `Rollout 3/100`; `Epoch` for data without rollouts."""
        super().on_train_epoch_start(trainer, *args)
        counted = "Rollout" if hasattr(trainer.datamodule, "prompts_per_rollout") else "Epoch"  # type: ignore[attr-defined]
        last = f"/{trainer.max_epochs}" if trainer.max_epochs and trainer.max_epochs > 0 else ""
        self.train_progress_bar.set_description(f"{counted} {trainer.current_epoch + 1}{last}")

    def get_metrics(self, trainer: Trainer, model: LightningModule) -> dict[str, Any]:
        """Return the metrics beside the bar, with short names: reward, length, kl, loss."""
        shown = super().get_metrics(trainer, model)
        shown.pop("v_num", None)
        names = {"rollout/reward_mean": "reward", "rollout/length_mean": "length", "kl/k3": "kl", "train/loss": "loss"}
        return {names.get(name, name): value for name, value in shown.items()}

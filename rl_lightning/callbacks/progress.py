"""How a run shows that it is getting on: bars in a terminal or a notebook, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import NoReturn

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, TQDMProgressBar
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import STEP_OUTPUT
from tqdm.auto import tqdm

from rl_lightning.hooks import Watch
from rl_lightning.typed import Typed

#: Metric → short name, in the order in which they are shown. The loss of an on-policy objective is 0 by construction.
_ONLINE = {
    "rollout/reward_mean": "reward",
    "val/pass@1": "pass@1",
    "kl/k3": "kl",
    "policy/entropy": "entropy",
    "rollout/length_mean": "len",
}
_OFFLINE = {
    "train/loss": "loss",
    "dpo/accuracy": "accuracy",
    "reward_model/accuracy": "accuracy",
    "val/loss": "val loss",
    "val/token_accuracy": "val accuracy",
    "val/accuracy": "val accuracy",
    "val/pass@1": "pass@1",
}
#: What a validation measures; a line has it only if there was one since the last line.
_HELD_OUT = ("pass@1", "val loss", "val accuracy")


def shown_metrics(trainer: Trainer, module: LightningModule) -> dict[str, float]:
    """Return short name → latest value of the metrics that say how a run is doing."""
    names = _ONLINE if module.learns_from == "rollouts" else _OFFLINE
    found = trainer.callback_metrics
    return {short: float(found[name]) for name, short in names.items() if name in found}


def short(value: float) -> str:
    """Return a number with three digits: 0.359, 23.1, 1.2e-05."""
    return f"{value:.3f}" if value == 0 or 0.001 <= abs(value) < 1 else f"{value:.3g}"


def interactive() -> bool:
    """Return whether bars can be drawn: in a terminal and in a notebook, not in a file or a pipe."""
    return sys.stdout.isatty() or "ipykernel" in sys.modules


def _unit(module: LightningModule) -> str:
    return "rollout" if module.learns_from == "rollouts" else "epoch"


def _last(trainer: Trainer) -> str:
    return f"/{trainer.max_epochs}" if trainer.max_epochs and trainer.max_epochs > 0 else ""


class RolloutProgressBar(TQDMProgressBar, metaclass=Typed):
    """Lightning's progress bar, with "Rollout" in place of "Epoch", and a second bar while responses are sampled.

    Beside it stands what moves: reward, pass@1, divergence, entropy and length of online runs, loss and accuracy of others.

    Args:
        refresh_rate: microbatches between updates of the bar; 0 turns it off.
        generation_bar: whether to show how many responses are finished.
    """

    def __init__(self, refresh_rate: int = 1, generation_bar: bool = True) -> None:
        super().__init__(refresh_rate=refresh_rate, leave=False)
        self.generation_bar = generation_bar
        self._bar: tqdm[NoReturn] | None = None

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

    def on_train_epoch_start(self, trainer: Trainer, *args: LightningModule) -> None:
        """Describe the bar as `Rollout 3/100`; `Epoch` for data without rollouts."""
        super().on_train_epoch_start(trainer, *args)
        unit = _unit(trainer.lightning_module).capitalize()
        self.train_progress_bar.set_description(f"{unit} {trainer.current_epoch + 1}{_last(trainer)}")

    def get_metrics(self, trainer: Trainer, model: LightningModule) -> dict[str, int | str | float | dict[str, float]]:
        """Return what stands beside the bar: short name → number."""
        return {name: short(value) for name, value in shown_metrics(trainer, model).items()}


class RolloutLines(ProgressBar, metaclass=Typed):
    """Print a line a rollout, in place of a bar: for output that goes to a file or a pipe.

        rollout 12/100  reward 0.430  kl 0.003  entropy 0.620  len 23.1  8.1 s

    Held-out numbers are shown on the lines of rollouts after which there was a validation. Where an epoch takes longer than `every_s`, there
    are lines in between: `epoch 1/3  step 40/313  loss 0.512  61 s`.

    Args:
        every_s: most seconds without a line.
    """

    def __init__(self, every_s: float = 60.0) -> None:
        super().__init__()
        self.every_s = every_s
        self._enabled = True
        self._began = self._printed = time.monotonic()
        self._validated = False

    def disable(self) -> None:
        """Print nothing: Lightning asks for it on ranks other than 0."""
        self._enabled = False

    def enable(self) -> None:
        """Print again."""
        self._enabled = True

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Set the DataModule's hook for the progress of sampling."""
        super().setup(trainer, pl_module, stage)
        data = trainer.datamodule  # type: ignore[attr-defined]
        if trainer.is_global_zero and isinstance(getattr(data, "watch", None), Watch):
            data.watch.on_progress = self._sampled

    def _sampled(self, done: int, total: int) -> None:
        if done < total and self._due():
            self._print(f"  {done:,} of {total:,} responses sampled")

    def _due(self) -> bool:
        return time.monotonic() - self._printed >= self.every_s

    def _print(self, line: str) -> None:
        self._printed = time.monotonic()
        if self._enabled:
            print(line, flush=True)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note when the epoch began, for the seconds at the end of its line; held-out numbers are old until a validation."""
        self._began = self._printed = time.monotonic()
        self._validated = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that there are new held-out numbers; print those from before training."""
        self._validated = True
        if trainer.state.fn == TrainerFn.FITTING and not trainer.global_step:
            shown = {name: value for name, value in shown_metrics(trainer, pl_module).items() if name in _HELD_OUT}
            self._print("  ".join(["before training", *(f"{name} {short(value)}" for name, value in shown.items())]))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: object, batch_idx: int
    ) -> None:
        """Print a line between two optimizer steps if none was printed for `every_s` seconds."""
        if self._due() and not trainer.is_last_batch:
            self._line(trainer, f"  step {batch_idx + 1}/{trainer.num_training_batches}")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the metrics as they are after the last optimizer step, and how long the epoch took."""
        self._line(trainer, "")

    def _line(self, trainer: Trainer, place: str) -> None:
        module = trainer.lightning_module
        metrics = shown_metrics(trainer, module)
        if not self._validated:
            metrics = {name: value for name, value in metrics.items() if name not in _HELD_OUT}
        parts = [f"{name} {short(value)}" for name, value in metrics.items()]
        seconds = f"{time.monotonic() - self._began:.1f} s"
        head = f"{_unit(module)} {trainer.current_epoch + 1}{_last(trainer)}{place}"
        self._print("  ".join([head, *parts, seconds]))

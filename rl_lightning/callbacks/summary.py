"""What a run has come to, printed at its end: first and last numbers, where things are, and what to do next."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger

from rl_lightning.callbacks.hf_export import HFExport
from rl_lightning.callbacks.loggers import run_directory
from rl_lightning.callbacks.progress import short
from rl_lightning.learner import Learner
from rl_lightning.typed import Typed

#: Name in the summary → metric.
_NUMBERS = {
    "reward": "rollout/reward_mean",
    "held-out reward": "val/reward_mean",
    "pass@1": "val/pass@1",
    "length, tokens": "rollout/length_mean",
    "KL, nats a token": "kl/k3",
    "entropy": "policy/entropy",
    "loss": "train/loss",
    "held-out loss": "val/loss",
    "held-out token accuracy": "val/token_accuracy",
    "held-out accuracy": "val/accuracy",
    "held-out margin": "val/margin",
}
#: What says nothing of a run that learns from rollouts: the loss is 0 by construction.
_OFFLINE_ONLY = ("train/loss",)


class RunSummary(Callback, metaclass=Typed):
    """Print a summary at the end of `fit`, on rank 0: numbers first → last, files, and commands to go on with."""

    def __init__(self) -> None:
        self._first: dict[str, float] = {}
        self._measured: int | None = None
        self._began = time.monotonic()

    def state_dict(self) -> dict[str, object]:
        """Return the first value of each number, and the step of the last held-out ones."""
        return {"first": dict(self._first), "measured": self._measured}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the first values of the run that is gone on with."""
        self._first, self._measured = dict(state_dict["first"]), state_dict.get("measured")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note when the fit began, for the duration in the first line of the summary."""
        self._began = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        """Keep the numbers that the first optimizer step has logged, as those before the arrow."""
        if "train/loss" not in self._first:
            self._keep(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the first held-out numbers, and note when there were the last."""
        self._measured = trainer.global_step
        self._keep(trainer)

    def _keep(self, trainer: Trainer) -> None:
        for name in _NUMBERS.values():
            if name in trainer.callback_metrics and name not in self._first:
                self._first[name] = float(trainer.callback_metrics[name])

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the summary; by now the model is exported."""
        directory = run_directory(trainer)
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            print("\n".join(self.lines(trainer, cast(Learner, pl_module), Path(directory))), flush=True)

    def lines(self, trainer: Trainer, module: Learner, directory: Path) -> list[str]:
        """Return the lines of the summary.

        Args:
            trainer: of the run.
            module: that was trained.
            directory: where the command line has saved the configuration, if it did.
        """
        online = module.learns_from == "rollouts"
        unit = "rollouts" if online else "epochs"
        seconds = round(time.monotonic() - self._began)
        took = f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
        facts = self._numbers(trainer, online) | _files(trainer) | _commands(trainer, module, directory)
        width = max(map(len, facts), default=0)
        head = f"finished: {trainer.current_epoch:,} {unit}, {trainer.global_step:,} steps, {took}"
        return [head, *(f"  {name:<{width}}  {text}" for name, text in facts.items())]

    def _numbers(self, trainer: Trainer, online: bool) -> dict[str, str]:
        last = trainer.callback_metrics
        never_again = self._measured == 0 and trainer.global_step > 0
        return {
            name: f"{short(self._first[metric])} before training, and not measured again"
            if never_again and metric.startswith("val/")
            else f"{short(self._first[metric])} → {short(float(last[metric]))}"
            for name, metric in _NUMBERS.items()
            if metric in last and metric in self._first and not (online and metric in _OFFLINE_ONLY)
        }


def _files(trainer: Trainer) -> dict[str, str]:
    """Return where model, checkpoints and curves are."""
    found = {}
    for one in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(one, HFExport):
            found["model"] = str(one.target(trainer))
        elif isinstance(one, ModelCheckpoint) and (one.last_model_path or one.best_model_path):
            found["checkpoint"] = _near(one.last_model_path or one.best_model_path)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            found["curves"] = f"rl-lightning tensorboard {_quoted(logger.log_dir)}"
        elif isinstance(logger, CSVLogger):
            found["metrics"] = str(Path(logger.log_dir) / "metrics.csv")
        elif isinstance(logger, WandbLogger):
            found["W&B"] = logger.experiment.url or f"wandb sync {_quoted(str(Path(logger.experiment.dir).parent))}"
        elif isinstance(logger, MLFlowLogger):
            found["MLflow"] = f"run {logger.run_id} of experiment {logger.experiment_id}"
    return found


def _commands(trainer: Trainer, module: Learner, directory: Path) -> dict[str, str]:
    """Return what to do next: on the command line if the run came from there, else in Python."""
    model = next((str(one.target(trainer)) for one in trainer.callbacks if isinstance(one, HFExport)), None)  # type: ignore[attr-defined]
    policy = "responses" in module.evaluates_on
    config = directory / "config.yaml"
    if not config.is_file():
        return {"ask": f'rl_lightning.load({model!r}).generate("...")'} if model and policy else {}
    command, given = "rl-lightning", f"--config {_quoted(str(config))}"
    found = {}
    if model:
        found["test"] = f"{command} test {given} --model.policy={_quoted(model)}"
    if any(isinstance(one, ModelCheckpoint) and one.save_last for one in trainer.checkpoint_callbacks):
        epochs = 2 * trainer.current_epoch
        found["go on"] = f"{command} fit {given} --ckpt_path last --trainer.max_epochs={epochs}"
    if model and policy:
        found["chat"] = f"{command} chat {_quoted(model)}"
    return found


def _near(path: str) -> str:
    """Return a path below the current folder without it."""
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path


def _quoted(path: str) -> str:
    return shlex.quote(path.rstrip("/"))

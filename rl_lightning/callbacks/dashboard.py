"""What loggers are told at the start of a fit: the configuration, and TensorBoard how to arrange its curves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from rl_lightning.callbacks.loggers import loggers, write_settings
from rl_lightning.learner import Learner
from rl_lightning.options import plain_options
from rl_lightning.tensorboard import TensorBoard
from rl_lightning.typed import Typed

#: Panel → chart → names of metrics, as regular expressions, for TensorBoard's tab Custom Scalars.
PANELS: dict[str, dict[str, list[str]]] = {
    "learning": {
        "reward": ["rollout/reward_mean", "val/reward_mean"],
        "pass@k": ["val/pass@.*"],
        "parts of the reward": ["reward/.*"],
        "loss": ["train/loss", "val/loss"],
        "accuracy": ["dpo/accuracy", "reward_model/accuracy", "val/accuracy", "val/token_accuracy"],
    },
    "trust": {
        "reward, verifier and divergence": ["val/reward_mean", "val/reward/.*", "val/kl"],
        "verifier below its best": ["val/watch_drop"],
        "best of n by a reward": ["val/best_of@.*"],
        "reward and length within a prompt": ["rollout/length_correlation"],
        "spread of rewards within a prompt": ["rollout/group_std"],
        "disagreement of reward models": ["reward/ensemble_sd"],
    },
    "staying close": {
        "divergence from the reference, nats": ["kl/.*", "val/kl"],
        "importance ratio": ["policy/ratio_mean"],
        "effective sample size": ["policy/ess"],
        "clipped": ["policy/clip_fraction_.*"],
    },
    "health": {
        "entropy, nats a token": ["policy/entropy", "val/entropy"],
        "length, tokens": ["rollout/length_mean", "val/length_mean"],
        "truncated": ["rollout/truncated_fraction", "val/truncated_fraction"],
        "groups that teach nothing": ["rollout/all_right_fraction", "rollout/all_wrong_fraction"],
        "failed rewards": ["rollout/failed_fraction", "val/failed_fraction"],
        "gradient norm": ["train/grad_norm"],
    },
    "speed": {
        "tokens a second": ["speed/.*tokens_per_s"],
        "seconds": ["time/.*"],
        "share of the roofline": ["speed/.*_roofline"],
    },
}
#: Charts that are empty, or 0 by construction, for runs that learn from rollouts, and for the others.
_OFFLINE_ONLY = ("loss", "accuracy")
_ONLINE_ONLY = (
    "reward", "parts of the reward", "importance ratio", "effective sample size", "clipped", "groups that teach nothing",
    "seconds", "disagreement of reward models", "reward and length within a prompt", "spread of rewards within a prompt",
)  # fmt: skip


def layout(online: bool) -> dict[str, dict[str, list[str | list[str]]]]:
    """Return TensorBoard's layout of the panels.

    Args:
        online: whether the run learns from rollouts.
    """
    left_out = _OFFLINE_ONLY if online else _ONLINE_ONLY
    return {
        panel: {chart: ["Multiline", names] for chart, names in charts.items() if chart not in left_out}
        for panel, charts in PANELS.items()
    }


class Dashboard(Callback, metaclass=Typed):
    """Give every logger the configuration of a run, and TensorBoard a layout of its tab Custom Scalars.

    TensorBoard shows the configuration in its tab HPARAMS, beside the metrics by which runs are compared.

    Args:
        settings: the configuration; the options of module and DataModule if None. The command line gives its own.
    """

    def __init__(self, settings: Mapping[str, object] | None = None) -> None:
        self.settings = settings

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Tell TensorBoard's loggers which curves come first, before any callback logs: one that goes on logs a step at once."""
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoard):
                logger.of_rollouts = pl_module.learns_from == "rollouts"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write configuration and layout, on rank 0."""
        settings, online = self.settings or _options(trainer, pl_module), pl_module.learns_from == "rollouts"
        for logger in loggers(trainer):
            write_settings(logger, settings, compared(cast(Learner, pl_module)))
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_custom_scalars(layout(online))


def compared(module: Learner) -> list[str]:
    """Return the names of the metrics by which runs of a module are compared."""
    if module.learns_from == "rollouts":
        return ["val/pass@1", "val/reward_mean", "val/length_mean", "rollout/reward_mean", "policy/entropy", "kl/k3"]
    if "responses" in module.evaluates_on:
        return ["val/pass@1", "val/reward_mean", "val/token_accuracy", "val/accuracy", "val/loss", "train/loss"]
    return ["val/accuracy", "val/loss", "train/loss"]


def _options(trainer: Trainer, module: LightningModule) -> dict[str, object]:
    """Return the options of a run that was set up in Python, as a YAML file would hold them."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    parts: dict[str, object] = {
        name: {"class_path": f"{type(part).__module__}.{type(part).__qualname__}", "init_args": plain_options(part)}
        for name, part in (("model", module), ("data", data))
    }
    return parts | {"trainer": {"max_epochs": trainer.max_epochs, "precision": str(trainer.precision)}}

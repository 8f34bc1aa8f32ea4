"""Silencing of messages by Lightning and others that do not apply to this library."""

from __future__ import annotations

import logging
import os
import re
import threading
import warnings

import transformers

_SAID_ELSEWHERE = re.compile(
    r"litlogger|litmodels|available: |Loading `train_dataloader`|`Trainer.fit` stopped: `max_(epochs|steps)|Seed set to"
)


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    """Say in one line that curves cannot be written. TensorBoard raises such an error again where something is logged after that."""
    if type(failure.thread).__module__.startswith("tensorboard."):
        logging.getLogger(__name__).error("TensorBoard's curves cannot be written: %s", failure.exc_value)
    else:
        threading.__excepthook__(failure)


def calm() -> None:
    """Filter warnings that do not apply here, and set the level and format of the log."""
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*Checkpoint directory .* exists and is not empty.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.*")
    warnings.filterwarnings("ignore", ".*your dataloader is not resumable.*")  # the DataModule saves its state
    warnings.filterwarnings(
        "ignore", ".*Total length of `list` across ranks is zero"
    )  # no validation data: one line says so
    # Metrics are the same on every rank, except times, for which those of rank 0 are logged. Nothing is changed in place.
    warnings.filterwarnings("ignore", ".*It is recommended to use `self.log.*sync_dist=True")
    warnings.filterwarnings("ignore", ".*returned a view tensor.*")
    warnings.filterwarnings("ignore", ".*MLFlow only allows .* special characters in metric name")
    # The reference is frozen and in evaluation mode on purpose.
    warnings.filterwarnings("ignore", ".*module\\(s\\) in eval mode.*")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for name in ("httpx", "absl"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # A warning that checkpoints are unpickled without a safeguard; `AtomicCheckpointIO` has one.
    logging.getLogger("lightning.pytorch.trainer.connectors.checkpoint_connector").addFilter(
        lambda record: "weights_only" not in record.getMessage()
    )
    # Advertisements, and what the run card or the summary say.
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).addFilter(lambda record: not _SAID_ELSEWHERE.search(record.getMessage()))
    threading.excepthook = _thread_failed
    transformers.utils.logging.disable_progress_bar()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Lightning 2.6 uses interfaces of jsonargparse that are deprecated.
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")

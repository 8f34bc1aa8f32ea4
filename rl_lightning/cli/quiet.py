"""What Lightning and others say about things that are as they should be here."""

from __future__ import annotations

import logging
import os
import re
import warnings

import transformers


def calm() -> None:
    """Silence what Lightning says about things that are as they should be here."""
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*Checkpoint directory .* exists and is not empty.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.*")
    warnings.filterwarnings("ignore", ".*your dataloader is not resumable.*")  # its DataModule keeps its state
    # Metrics are the same on every rank, but for times, of which rank 0's are shown; and nothing is changed in place.
    warnings.filterwarnings("ignore", ".*It is recommended to use `self.log.*sync_dist=True")
    warnings.filterwarnings("ignore", ".*returned a view tensor.*")
    # The reference is in evaluation mode, as it should be.
    warnings.filterwarnings("ignore", ".*module\\(s\\) in eval mode.*")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for name in ("httpx", "absl"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Says that checkpoints are unpickled without a safeguard; `AtomicCheckpointIO` has one.
    logging.getLogger("lightning.pytorch.trainer.connectors.checkpoint_connector").addFilter(
        lambda record: "weights_only" not in record.getMessage()
    )
    # Advertisements and device listings; the run card names the devices.
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: not re.search(r"litlogger|litmodels|available: |Loading `train_dataloader`", record.getMessage())
    )
    transformers.utils.logging.disable_progress_bar()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Lightning 2.6 calls jsonargparse in ways that it means to drop in its next major version.
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")

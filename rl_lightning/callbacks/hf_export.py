"""The trained model as a Hugging Face directory."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from rl_lightning.strategies import full_state_dict

log = logging.getLogger(__name__)


class HFExport(Callback):
    """Save model and tokenizer at the end of `fit`, as `from_pretrained` reads them: `AutoModelForCausalLM`'s for a policy,
    `AutoModelForSequenceClassification`'s for a reward model.

    Args:
        dirpath: where to; `hf` under the trainer's `default_root_dir` if null.
    """

    def __init__(self, dirpath: str | None = None) -> None:
        self.dirpath = dirpath

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, once, from rank 0; a sharded model is put together by all of them."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        target = Path(self.dirpath) if self.dirpath else Path(trainer.default_root_dir) / "hf"
        module: Any = pl_module
        model, tokenizer = module.hf_parts()
        weights = full_state_dict(model, trainer)
        if not trainer.is_global_zero:
            return
        model.save_pretrained(target, state_dict=weights)
        tokenizer.save_pretrained(target)
        log.info("The trained model is in %s", target)

"""Export of the trained model as a Hugging Face directory."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rl_lightning.errors import UserError
from rl_lightning.learner import Learner
from rl_lightning.models import LoraOptions, save_adapter, save_plain
from rl_lightning.models.adapter_files import AdapterFiles, holds_weights
from rl_lightning.strategies import full_state_dict
from rl_lightning.typed import Typed

#: Name of the directory of exported models, in `default_root_dir`.
DIRECTORY = "hf"


class Exported(Learner, Protocol):
    """What the export asks of an algorithm."""

    @property
    def lora(self) -> LoraOptions | None:
        """The adapter that is trained; None if the weights are."""

    def hf_parts(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Return the trained model and its tokenizer."""


class HFExport(Callback, metaclass=Typed):
    """Save the trained model and its tokenizer at the end of `fit`.

    Load a policy with `AutoModelForCausalLM.from_pretrained`, a reward model with `AutoModelForSequenceClassification`, and an
    adapter that is not merged with `peft.PeftModel`.

    Args:
        dirpath: directory to write to; `hf` in the trainer's `default_root_dir` if null.
        merge: with LoRA, add the adapter to the weights, rounded to their dtype, so that loading needs no peft. If false, save
            the adapter alone, with the name of its base model.
    """

    def __init__(self, dirpath: str | None = None, merge: bool = True) -> None:
        self.dirpath = dirpath
        self.merge = merge

    def target(self, trainer: Trainer) -> Path:
        """Return the directory that the model is written to."""
        return Path(self.dirpath) if self.dirpath else Path(trainer.default_root_dir) / DIRECTORY

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse before training what could not be saved, or not be read again.

        Raises:
            UserError: for `merge: false` without LoRA, or with a base model that an adapter cannot name; for a directory that holds an
                adapter where a model is to be saved, or the weights of a model where an adapter is: both would be read together.
        """
        module, target = cast(Exported, pl_module), self.target(trainer)
        if stage != "fit":
            return
        if AdapterFiles.are_in(target) if self.merge else holds_weights(target):
            there, saved = ("an adapter", "a model") if self.merge else ("a model", "an adapter")
            raise UserError(
                f"HFExport: {target} holds {there}, and {saved} beside it would be read together with it: set dirpath, or move it"
            )
        if self.merge:
            return
        if module.lora is None:
            raise UserError(
                "HFExport: merge: false is about adapters, and there is none: set model.lora, or leave merge out"
            )
        _ = module.policy_files.base

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save from rank 0; every rank takes part in gathering a sharded model."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        target = self.target(trainer)
        module = cast(Exported, pl_module)
        model, tokenizer = module.hf_parts()
        weights = full_state_dict(model, trainer, here=trainer.is_global_zero)
        if not trainer.is_global_zero:
            return
        with _replacing(target) as place:
            if self.merge:
                save_plain(model, weights, place)
            else:
                save_adapter(model, weights, module.policy_files.base, place)
            tokenizer.save_pretrained(place)


@contextlib.contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """Context that gives an empty directory; in the end its files take the places of those of `target`, and weights that were there
    under other names go. Until then an earlier export stays as it is, also for a program that has it mapped into memory."""
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=target) as directory:
        place = Path(directory)
        yield place
        new = {path.name for path in place.iterdir()}
        if any(name.startswith("model") for name in new):
            for old in [path for path in target.glob("model*.safetensors*") if path.name not in new]:
                old.unlink()
        for path in place.iterdir():
            if path.is_dir():
                shutil.rmtree(target / path.name, ignore_errors=True)
            path.replace(target / path.name)

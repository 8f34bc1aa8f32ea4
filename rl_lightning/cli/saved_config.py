"""The configuration of a run, written down beside its curves."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import yaml
from lightning.fabric.utilities.cloud_io import get_filesystem
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from rl_lightning.errors import UserError

#: An interpolation relative to where it stands, as jsonargparse makes them of the absolute ones of a YAML.
_RELATIVE = re.compile(r"\$\{(\.+)([^${}]*)\}")


class SaveFitConfig(SaveConfigCallback):
    """Writes down what a run was fitted with, as it was written: `${trainer.default_root_dir}/checkpoints` stays that, so that
    whoever fits with the file and another `default_root_dir` writes nothing where this run did.

    Evaluating a run later, with other settings, leaves its configuration alone.

    Args:
        written: the configuration as YAML, by subcommand, before interpolations were replaced; None if there are none.
        *arguments: parser and configuration, from Lightning.
        **options: see `SaveConfigCallback`.
    """

    def __init__(self, *arguments: Any, written: str | None = None, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.written = written
        self._directory: str | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save before a fit.

        Raises:
            UserError: if the file cannot be written: it is a directory, or belongs to another user.
        """
        if stage == "fit":
            self._directory = trainer.log_dir  # the ranks agree on it, so all must ask
            place = Path(str(self._directory), self.config_filename)
            if place.exists() and not (place.is_file() and os.access(place, os.W_OK)):
                raise UserError(
                    f"cannot write {place}: it is no file of this user's: move it away, or choose another "
                    "--trainer.default_root_dir"
                )
            super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Put interpolations back into the file that was saved; only rank 0 gets here."""
        assert self._directory is not None
        files, path = get_filesystem(self._directory), f"{self._directory}/{self.config_filename}"
        if self.written is None:
            with files.open(path, "r", encoding="utf-8") as file:
                settings = yaml.safe_load(file)
        else:
            settings = absolute_interpolations(yaml.safe_load(self.written)["fit"])
        if settings.get("ckpt_path") == "last":
            settings["ckpt_path"] = None  # where a run goes on is no part of what it is
        with files.open(path, "w", encoding="utf-8") as file:
            yaml.safe_dump(settings, file, sort_keys=False, allow_unicode=True)


def absolute_interpolations(node: Any, place: tuple[str, ...] = ()) -> Any:
    """Return a configuration in which interpolations name keys from its top.

    Args:
        node: dictionaries, lists and plain values.
        place: the keys and list indices that lead to it.
    """
    if isinstance(node, dict):
        return {name: absolute_interpolations(value, (*place, str(name))) for name, value in node.items()}
    if isinstance(node, list):
        return [absolute_interpolations(value, (*place, str(number))) for number, value in enumerate(node)]
    if not isinstance(node, str):
        return node

    def from_top(found: re.Match[str]) -> str:
        above = place[: len(place) - len(found[1])]
        return "${" + ".".join([*above, *([found[2]] if found[2] else [])]) + "}"

    return _RELATIVE.sub(from_top, node)

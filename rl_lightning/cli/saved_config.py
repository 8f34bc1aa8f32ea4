"""The configuration of a run, saved beside its logs."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from rl_lightning.callbacks.loggers import run_directory
from rl_lightning.errors import UserError
from rl_lightning.options.yaml_files import dump, settings_of

#: An interpolation relative to its own place, such as `${..name}`: jsonargparse turns the absolute ones of a YAML into these.
_RELATIVE = re.compile(r"\$\{(\.+)([^${}]*)\}")


class SaveFitConfig(SaveConfigCallback):
    """Save the configuration of a fit, with interpolations as they were written.

    `${trainer.default_root_dir}/checkpoints` stays an interpolation. So a fit with the saved file and another
    `default_root_dir` does not write into the directories of this run. Evaluation saves nothing.

    Args:
        written: the configuration as YAML, by subcommand, with its interpolations; None if it has none.
        *arguments: parser and configuration, from Lightning.
        **options: see `SaveConfigCallback`.
    """

    def __init__(self, *arguments: Any, written: str | None = None, **options: Any) -> None:
        super().__init__(*arguments, **{**options, "save_to_log_dir": False})
        self.written = written
        self._place = Path(self.config_filename)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save before a fit, beside the curves or in `default_root_dir`.

        Raises:
            UserError: if the file cannot be written: it is a directory, or belongs to another user.
        """
        if stage != "fit":
            return
        self._place = Path(run_directory(trainer), self.config_filename)
        if self._place.exists() and not (self._place.is_file() and os.access(self._place, os.W_OK)):
            raise UserError(
                f"cannot write {self._place}: it is no file of this user's: move it away, or choose another "
                "--trainer.default_root_dir"
            )
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file, on rank 0, where Lightning calls this."""
        if self.written is None:
            settings = settings_of(self.parser.dump(self.config, skip_unset=False), "the configuration")
        else:
            found = absolute_interpolations(settings_of(self.written, "the configuration")["fit"])
            assert isinstance(found, dict)
            settings = found
        if settings.get("ckpt_path") == "last":
            settings["ckpt_path"] = None  # the saved file describes the run from its beginning
        self._place.parent.mkdir(parents=True, exist_ok=True)
        self._place.write_text(dump(settings), encoding="utf-8")


def absolute_interpolations(node: object, place: tuple[str, ...] = ()) -> object:
    """Return a configuration whose relative interpolations are replaced by absolute ones.

    Args:
        node: the configuration, or a part of it: dictionaries, lists and plain values.
        place: the keys and list indices that lead to the part.

    Example:
        >>> absolute_interpolations({"trainer": {"dir": "runs", "log": "${.dir}/log"}})
        {'trainer': {'dir': 'runs', 'log': '${trainer.dir}/log'}}
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

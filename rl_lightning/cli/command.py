"""Lightning's command line with this library's defaults."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import set_parsing_settings
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningCLI

from rl_lightning.callbacks import RunLock
from rl_lightning.cli.mistakes import mistake_behind
from rl_lightning.cli.saved_config import SaveFitConfig
from rl_lightning.defaults import TRAINER_DEFAULTS, complete, refusals_of_the_trainer
from rl_lightning.errors import UserError
from rl_lightning.options.parser import Parser
from rl_lightning.quiet import calm
from rl_lightning.strategies import check_origin

#: Exit status after a `UserError`.
USAGE_ERROR = 2


class CLI(LightningCLI):
    """LightningCLI with our defaults: model and data by class path, interpolation by omegaconf, overlays by repeated `--config`."""

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the Trainer, with what every run has: see `rl_lightning.defaults`.

        Raises:
            UserError: for settings that the Trainer refuses.
        """
        assert isinstance(self.parser, Parser)
        self.save_config_kwargs["written"] = self.parser.written
        settings = complete({**self.config_init[self.subcommand].trainer, **kwargs})
        with refusals_of_the_trainer():
            return super().instantiate_trainer(**settings)

    def before_fit(self) -> None:
        """Refuse a missing checkpoint, and a directory that another run is writing to, before anything is written."""
        self.check_checkpoint()
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        for lock in [callback for callback in callbacks if isinstance(callback, RunLock)]:
            lock.acquire(self.trainer)

    def check_checkpoint(self) -> None:
        """Check `--ckpt_path`. For a missing `last`, Lightning would only warn and start from the beginning.

        Raises:
            UserError: for a checkpoint that does not exist, is damaged, or was not written by a run of this library.
        """
        path = self.config[self.subcommand].get("ckpt_path")
        if path == "best":
            raise UserError("--ckpt_path best is for the process that has trained: name the file, or last")
        if path == "hpc" and not list(Path(self.trainer.default_root_dir).glob("hpc_ckpt_*.ckpt")):
            raise UserError(f"--ckpt_path hpc: there is no hpc_ckpt_*.ckpt in {self.trainer.default_root_dir}")
        if path in (None, "hpc") or str(path).startswith("registry") or "://" in str(path):
            return
        if path == "last":
            path = self._last_checkpoint()
        elif not Path(path).exists():
            raise UserError(f"--ckpt_path: there is no checkpoint {path}")
        if self.trainer.is_global_zero:
            check_origin(path, goes_on=self.subcommand == "fit")

    def _last_checkpoint(self) -> Path:
        """Return the newest `last*.ckpt` in the directories of the checkpoint callbacks.

        Raises:
            UserError: if there is none.
        """
        savers = [one for one in self.trainer.checkpoint_callbacks if isinstance(one, ModelCheckpoint)]
        places = {str(one.dirpath) for one in savers if one.dirpath}
        found = [path for place in places for path in Path(place).glob("last*.ckpt")]
        if not found:
            raise UserError(
                f"--ckpt_path last: there is no last*.ckpt in {', '.join(sorted(places)) or 'the (unset) dirpath'}: run without "
                "--ckpt_path to begin, or set dirpath and save_last on ModelCheckpoint"
            )
        return max(found, key=lambda path: path.stat().st_mtime_ns)

    before_validate = before_test = before_predict = check_checkpoint

    def _parse_ckpt_path(self) -> None:
        """Do not read hyper-parameters from a checkpoint, as Lightning would: the command line and the YAML decide."""


def main(args: Sequence[str] | None = None) -> None:
    """Run a command; after a user's mistake, print one line to standard error and exit with status 2.

    Args:
        args: of the command line; those of this process if None.
    """
    calm()
    try:
        run(args)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        mistake = mistake_behind(error)
        if mistake is None:
            raise
        print(f"rl_lightning: error: {mistake}", file=sys.stderr)
        sys.exit(USAGE_ERROR)


def run(args: Sequence[str] | None = None) -> CLI:
    """Run a command from Python.

    Args:
        args: of the command line, such as `["fit", "--config=configs/grpo.yaml"]`; those of this process if None.

    Returns:
        The CLI, with `trainer`, `model` and `datamodule`.

    Raises:
        UserError: for a mistake in the arguments or files.
    """
    # Interpolations name keys from the top of the file. They are resolved after all overlays and overrides are merged.
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    return CLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        seed_everything_default=0,
        auto_configure_optimizers=False,
        parser_kwargs={"parser_mode": "omegaconf+"},
        save_config_callback=SaveFitConfig,
        save_config_kwargs={"overwrite": True},
        trainer_defaults=TRAINER_DEFAULTS,
        parser_class=Parser,
        args=list(args) if args is not None else None,
    )

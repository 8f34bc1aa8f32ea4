"""The command line: Lightning's, with one line for every mistake."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

from jsonargparse import set_parsing_settings
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from omegaconf.errors import OmegaConfBaseException

# Importing them makes their classes known by short names: `--model=GRPO`.
import rl_lightning.algorithms
import rl_lightning.data  # noqa: F401
from rl_lightning.callbacks import RNGState, RolloutProgressBar, RunCard, Speed
from rl_lightning.errors import UserError

#: Exit status after a mistake of the user's.
USAGE_ERROR = 2


class Parser(LightningArgumentParser):
    """A parser that says what is wrong and nothing else."""

    def error(self, message: str, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise instead of printing the usage of every option."""
        raise UserError(_last_line(message))


class CLI(LightningCLI):
    """Subclasses of the algorithms and DataModules by name, values by omegaconf, overlays by repeated `--config`."""

    def _parse_ckpt_path(self) -> None:
        """Leave a checkpoint's hyper-parameters alone: the command line and the YAML decide, here as elsewhere."""


def main(args: Sequence[str] | None = None) -> None:
    """Run a command; exit with status 2 and one line on standard error if the input is at fault."""
    _calm()
    try:
        run(args)
    except (UserError, MisconfigurationException, OmegaConfBaseException) as error:
        print(f"rl_lightning: error: {_one_line(error)}", file=sys.stderr)
        sys.exit(USAGE_ERROR)


def run(args: Sequence[str] | None = None) -> CLI:
    """Run a command and return what it was run with, for those who call it from Python."""
    # Interpolations name keys from the top of the file, and hold after every overlay and override is in.
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    return CLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        seed_everything_default=0,
        auto_configure_optimizers=False,
        parser_kwargs={"parser_mode": "omegaconf+"},
        save_config_callback=SaveConfigCallback,
        save_config_kwargs={"overwrite": True},
        trainer_defaults={
            "log_every_n_steps": 1,
            "num_sanity_val_steps": 0,
            "callbacks": [RNGState(), RunCard(), Speed(), RolloutProgressBar()],
        },
        parser_class=Parser,
        args=list(args) if args is not None else None,
    )


def _one_line(error: Exception) -> str:
    return _last_line(str(error)) if not isinstance(error, UserError) else str(error)


def _last_line(message: str) -> str:
    """Return the innermost complaint of a nested parser message, and where it was found."""
    return re.sub(r"\s*\n\s*", "; ", message.strip())


def _calm() -> None:
    """Silence what Lightning says about things that are as they should be here."""
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*Checkpoint directory .* exists and is not empty.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.*")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

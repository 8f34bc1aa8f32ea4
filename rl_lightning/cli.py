"""The command line: Lightning's, with one line for every mistake."""

from __future__ import annotations

import difflib
import errno
import inspect
import logging
import os
import re
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import transformers
from jsonargparse import set_parsing_settings
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError

from rl_lightning.algorithms import ObjectiveModule, OptimizerOptions
from rl_lightning.callbacks import (
    CollapseWarning,
    DurableLogs,
    GracefulStop,
    NonFiniteGuard,
    RNGState,
    RolloutProgressBar,
    RunCard,
    RunLock,
    Speed,
    SpreadWarning,
)
from rl_lightning.data import Evaluation, ExampleSource, PairOptions, PromptOptions, SamplingDataModule
from rl_lightning.errors import UserError
from rl_lightning.generation import Generator, Sampling
from rl_lightning.hooks import RolloutCallback
from rl_lightning.models import LoadOptions, LoraOptions
from rl_lightning.rewards import RewardLimits, RewardSpec
from rl_lightning.strategies import AtomicCheckpointIO

#: Exit status after a mistake of the user's.
USAGE_ERROR = 2


class Parser(LightningArgumentParser):
    """A parser that says what is wrong and nothing else."""

    def error(self, message: str, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise instead of printing the usage of every option."""
        raise UserError(explain(message))


class CLI(LightningCLI):
    """Subclasses of the algorithms and DataModules by name, values by omegaconf, overlays by repeated `--config`."""

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add what every run has: callbacks, a progress bar where there is no other and one is wanted, whole checkpoints."""
        settings = self.config_init[self.subcommand].trainer
        listed = settings.callbacks if isinstance(settings.callbacks, list) else [settings.callbacks]
        own_bar = any(isinstance(callback, ProgressBar) for callback in listed)
        bar = [] if own_bar or settings.enable_progress_bar is False else [RolloutProgressBar()]
        own = {type(callback) for callback in listed}
        always: list[Callback] = [
            kind()
            for kind in (RNGState, RunCard, Speed, NonFiniteGuard, CollapseWarning, SpreadWarning, DurableLogs)
            if kind not in own
        ]
        # Lightning's own timer stops between microbatches too, where a gradient would be lost, and saves nothing.
        always += [] if GracefulStop in own else [GracefulStop(settings.max_time)]
        # After whatever saves at an exception.
        always += [] if RunLock in own else [RunLock()]
        kwargs["max_time"] = None
        self.trainer_defaults["callbacks"] = [*always, *bar]
        plugins = {} if settings.plugins else {"plugins": [AtomicCheckpointIO()]}
        return super().instantiate_trainer(**plugins, **kwargs)

    def before_fit(self) -> None:
        """Refuse a checkpoint that is not there, and a directory that another run writes to, before anything is written."""
        self.check_checkpoint()
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        for lock in [callback for callback in callbacks if isinstance(callback, RunLock)]:
            lock.acquire(self.trainer)

    def check_checkpoint(self) -> None:
        """Refuse a checkpoint that is not there; for `last` Lightning would begin anew and only warn."""
        path = self.config[self.subcommand].get("ckpt_path")
        if path not in (None, "last", "best", "hpc", "registry") and not Path(path).exists():
            raise UserError(f"--ckpt_path: there is no checkpoint {path}")
        if path != "last":
            return
        savers = [one for one in self.trainer.checkpoint_callbacks if isinstance(one, ModelCheckpoint)]
        places = {str(one.dirpath) for one in savers if one.dirpath}
        if not any(list(Path(place).glob("last*.ckpt")) for place in places):
            raise UserError(
                f"--ckpt_path last: there is no last*.ckpt in {', '.join(sorted(places)) or 'the (unset) dirpath'}: run without "
                "--ckpt_path to begin, or set dirpath and save_last on ModelCheckpoint"
            )

    before_validate = before_test = before_predict = check_checkpoint

    def _parse_ckpt_path(self) -> None:
        """Leave a checkpoint's hyper-parameters alone: the command line and the YAML decide, here as elsewhere."""


class SaveFitConfig(SaveConfigCallback):
    """Writes down what a run was fitted with; evaluating it later, with other settings, leaves that alone."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save before a fit."""
        if stage == "fit":
            super().setup(trainer, pl_module, stage)


def mistake_behind(error: BaseException | None) -> str | None:
    """Return what the user did wrong, if an error comes of that; jsonargparse wraps those of constructors in its own."""
    while error is not None:
        if isinstance(error, UserError):
            return str(error)
        if isinstance(error, (MisconfigurationException, OmegaConfBaseException)):
            return " ".join(str(error).split())
        if is_full_disk(error):
            place = getattr(error, "filename", None)
            return f"cannot write{f' {place}' if place else ''}, the disk is full: make room or choose another place"
        error = error.__cause__ or error.__context__
    return None


def is_full_disk(error: BaseException) -> bool:
    """Return whether an error says that there is no room left, or none for this user."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return isinstance(error, SafetensorError) and os.strerror(errno.ENOSPC) in str(error)


def main(args: Sequence[str] | None = None) -> None:
    """Run a command; exit with status 2 and one line on standard error if the input is at fault."""
    _calm()
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
        save_config_callback=SaveFitConfig,
        save_config_kwargs={"overwrite": True},
        trainer_defaults={"log_every_n_steps": 1, "num_sanity_val_steps": 0},
        parser_class=Parser,
        args=list(args) if args is not None else None,
    )


# jsonargparse reports a mistake inside nested classes as a tree of everything that it tried; these lines of it say
# nothing to a person who misspelt an option.
_NOISE = re.compile(
    r"Does not validate against|Subtypes:|Errors:|Expected a <class 'NoneType'>|Given value|Problem with given class_path"
    r"|Expected type: |Not a valid subclass|Subclass types expect|^a class path|^a dict with|Parser key \"(model|data|trainer\.callbacks)\":$"
)


def explain(message: str) -> str:
    """Return the one line of a parser's message that names the mistake, with near misses of a misspelt option."""
    lines = [line.strip(" -") for line in message.splitlines()]
    kept = list(dict.fromkeys(line for line in lines if line and not _NOISE.search(line)))
    text = "; ".join(kept) or "; ".join(line for line in lines if line)
    text = re.sub(r'Parser key "([^"]+)":;? ', r"\1: ", text)
    unknown = re.search(
        r"Option '([\w.]+)' is not accepted|unrecognized arguments: --([\w.]+)|does not accept option '([\w.]+)'", text
    )
    if unknown and "did you mean" not in text:
        name = next(found for found in unknown.groups() if found).split(".")[-1]
        close = difflib.get_close_matches(name, known_options(), n=1)
        text += f"; did you mean '{close[0]}'?" if close else ""
    return text


def known_options() -> set[str]:
    """Return the names of all options of the classes that a YAML can name."""
    names: set[str] = set(inspect.signature(Trainer.__init__).parameters)
    waiting: list[type] = [ObjectiveModule, SamplingDataModule, ExampleSource, RolloutCallback, Generator]
    waiting += [
        OptimizerOptions,
        LoadOptions,
        LoraOptions,
        Sampling,
        Evaluation,
        PairOptions,
        PromptOptions,
        RewardSpec,
        RewardLimits,
    ]
    while waiting:
        one = waiting.pop()
        waiting += one.__subclasses__()
        names |= set(inspect.signature(one).parameters)
    return names - {"self", "kwargs", "args"}


def _calm() -> None:
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

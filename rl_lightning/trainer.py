"""Lightning's Trainer for Python, with what the command line gives every run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.types import EVAL_DATALOADERS, TRAIN_DATALOADERS

from rl_lightning.audit import Audits
from rl_lightning.callbacks import RunLock
from rl_lightning.callbacks.logged_before import continue_logs
from rl_lightning.data.record import day_of
from rl_lightning.defaults import complete, refusals_of_the_trainer
from rl_lightning.errors import UserError
from rl_lightning.options import Checked
from rl_lightning.quiet import calm
from rl_lightning.strategies import check_origin, read_states
from rl_lightning.tensorboard import TensorBoard
from rl_lightning.text.day import pin

#: Where a run from Python writes, unless it is told.
DIRECTORY = "runs/python"


class Trainer(Audits, metaclass=Checked):
    """A Trainer whose runs have a run card, guards, a lock, random states in their checkpoints, and a last checkpoint to go on from.

    The callbacks are those of `rl_lightning.defaults.default_callbacks`, beside the ones that are listed. Where no `ModelCheckpoint`
    is listed, one keeps the last checkpoint in `checkpoints` under `default_root_dir`; where no logger is given, TensorBoard's
    curves go to `tensorboard` there.

    Args:
        seed: of the random numbers of torch, numpy and Python, from which new weights are drawn. If None, that of Lightning's
            `seed_everything`, if it was called, else 0. Prompts and samples follow the DataModule's own `seed`.
        default_root_dir: where everything is written.
        callbacks: further callbacks.
        logger: what curves are sent to; False for nothing.
        enable_checkpointing: False saves no checkpoint.
        **settings: of `lightning.pytorch.Trainer`.

    Raises:
        UserError: in one line, for a setting that is unknown, or that the Trainer refuses.

    Example:
        >>> trainer = Trainer(max_epochs=2, default_root_dir="runs/first", enable_progress_bar=False)
        >>> trainer.fit(GRPO(policy="embedded"), RolloutDataModule())  # doctest: +SKIP
    """

    def __init__(
        self,
        seed: int | None = None,
        default_root_dir: str | os.PathLike[str] | None = None,
        callbacks: Any = None,
        logger: Any = None,
        enable_checkpointing: bool | None = None,
        **settings: Any,
    ) -> None:
        calm()
        if seed is not None or "PL_GLOBAL_SEED" not in os.environ:
            pl.seed_everything(seed or 0, verbose=False)
        root = str(default_root_dir or DIRECTORY)
        listed = _listed(callbacks)
        if enable_checkpointing is not False and not any(isinstance(one, ModelCheckpoint) for one in listed):
            listed.append(ModelCheckpoint(f"{root}/checkpoints", "rollout-{epoch}", save_top_k=1, save_last=True))
        if logger in (None, True):
            logger = TensorBoard(root)
        settings |= {"default_root_dir": root, "logger": logger, "enable_checkpointing": enable_checkpointing}
        settings = complete({**settings, "callbacks": listed})
        with refusals_of_the_trainer():
            super().__init__(**settings)

    def fit(
        self,
        model: LightningModule | None = None,
        train_dataloaders: TRAIN_DATALOADERS | LightningDataModule | None = None,
        val_dataloaders: EVAL_DATALOADERS | None = None,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | Path | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Train; see `lightning.pytorch.Trainer.fit`.

        Args:
            model: the algorithm.
            train_dataloaders: its DataModule.
            val_dataloaders, weights_only: see Lightning.
            datamodule: the DataModule, if it is given by name.
            ckpt_path: a checkpoint to go on from; `last` for the newest of `default_root_dir`.

        Raises:
            UserError: for a checkpoint that training cannot go on from, and a directory that another run is writing to.
        """
        check_fit(model, datamodule if train_dataloaders is None else train_dataloaders)
        assert model is not None
        try:
            prepare(self, ckpt_path, goes_on=True)
            super().fit(model, train_dataloaders, val_dataloaders, datamodule, ckpt_path, weights_only)
        except BaseException:
            release_locks(self)
            raise

    def validate(
        self,
        model: LightningModule | None = None,
        dataloaders: EVAL_DATALOADERS | LightningDataModule | None = None,
        ckpt_path: str | Path | None = None,
        verbose: bool = True,
        datamodule: LightningDataModule | None = None,
        weights_only: bool | None = None,
    ) -> list[Mapping[str, float]]:
        """Measure on the validation data of a DataModule; see `lightning.pytorch.Trainer.validate`."""
        prepare(self, ckpt_path, goes_on=False)
        return super().validate(model, dataloaders, ckpt_path, verbose, datamodule, weights_only)

    def test(
        self,
        model: LightningModule | None = None,
        dataloaders: EVAL_DATALOADERS | LightningDataModule | None = None,
        ckpt_path: str | Path | None = None,
        verbose: bool = True,
        datamodule: LightningDataModule | None = None,
        weights_only: bool | None = None,
    ) -> list[Mapping[str, float]]:
        """Measure on the test data of a DataModule; see `lightning.pytorch.Trainer.test`."""
        prepare(self, ckpt_path, goes_on=False)
        return super().test(model, dataloaders, ckpt_path, verbose, datamodule, weights_only)


def release_locks(trainer: pl.Trainer) -> None:
    """Release the locks of a fit that has failed: Lightning tells callbacks of no error before a run has begun."""
    for lock in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(lock, RunLock):
            lock.release(trainer)


def check_fit(model: object, data: object) -> None:
    """Refuse what is no algorithm and its DataModule, such as the two in the wrong order.

    Raises:
        UserError: says what to give.
    """
    if isinstance(model, LightningModule) and isinstance(data, LightningDataModule):
        return
    given = ", ".join("nothing" if one is None else type(one).__name__ for one in (model, data))
    raise UserError(
        f"Trainer.fit takes an algorithm and its DataModule, as in fit(GRPO(...), RolloutDataModule(...)), not {given}"
    )


def _listed(callbacks: object) -> list[Callback]:
    """Return callbacks as a list.

    Raises:
        UserError: for what is no callback, such as the class in place of an object of it.
    """
    found: list[Callback] = []
    for one in [] if callbacks is None else callbacks if isinstance(callbacks, list | tuple) else [callbacks]:
        if isinstance(one, type) and issubclass(one, Callback):
            raise UserError(f"Trainer: callbacks: {one.__name__} is a class: make an object of it, {one.__name__}()")
        if not isinstance(one, Callback):
            raise UserError(f"Trainer: callbacks: expected Callback, not an object of class {type(one).__name__}")
        found.append(one)
    return found


def take_locks(trainer: pl.Trainer) -> None:
    """Take the locks of a run before anything is written: Lightning writes files before callbacks are set up.

    Raises:
        UserError: for a directory that another run is writing to.
    """
    for lock in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(lock, RunLock):
            lock.acquire(trainer)


def prepare(trainer: pl.Trainer, path: str | Path | None, goes_on: bool, option: str = "ckpt_path") -> None:
    """Do what comes before anything is written: check the checkpoint, take the locks of a fit, and let loggers keep what they have.

    Args:
        trainer: is to run.
        path: see `check_checkpoint`.
        goes_on: the Trainer is to train, from the checkpoint if there is one; False to evaluate.
        option: what messages call the path.
    """
    check_checkpoint(trainer, path, goes_on, option)
    if goes_on:
        take_locks(trainer)
    continue_logs(trainer, anew=goes_on and path is None)


def check_checkpoint(trainer: pl.Trainer, path: str | Path | None, goes_on: bool, option: str = "ckpt_path") -> None:
    """Check the path of a checkpoint. For a missing `last`, Lightning would only warn and start from the beginning.

    Args:
        trainer: is to load it.
        path: of a file or directory, `last`, `best`, `hpc`, or an address; None for none.
        goes_on: training is to go on from it.
        option: what messages call the path.

    Raises:
        UserError: for a checkpoint that does not exist, is damaged, or was not written by a run of this library.
    """
    pin(date.today())
    if path == "hpc" and not list(Path(trainer.default_root_dir).glob("hpc_ckpt_*.ckpt")):
        raise UserError(f"{option} hpc: there is no hpc_ckpt_*.ckpt in {trainer.default_root_dir}")
    if path is None or path in ("hpc", "best") or str(path).startswith("registry") or "://" in str(path):
        return
    if path == "last":
        path = _last_checkpoint(trainer, option)
    elif not Path(path).exists():
        raise UserError(f"{option}: there is no checkpoint {path}")
    if trainer.is_global_zero:
        check_origin(path, goes_on=goes_on)
    if goes_on:
        pin(day_of(read_states(path)))


def _last_checkpoint(trainer: pl.Trainer, option: str) -> Path:
    """Return the newest `last*.ckpt` in the directories of the checkpoint callbacks.

    Raises:
        UserError: if there is none.
    """
    savers = [one for one in trainer.checkpoint_callbacks if isinstance(one, ModelCheckpoint)]
    places = {str(one.dirpath) for one in savers if one.dirpath}
    found = [path for place in places for path in Path(place).glob("last*.ckpt")]
    if not found:
        raise UserError(
            f"{option} last: there is no last*.ckpt in {', '.join(sorted(places)) or 'the (unset) dirpath'}: run without "
            f"{option} to begin, or set dirpath and save_last on ModelCheckpoint"
        )
    return max(found, key=lambda path: path.stat().st_mtime_ns)

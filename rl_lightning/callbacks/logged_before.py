"""What loggers have written in an earlier run, when a run goes on: it must be kept, and continued."""

from __future__ import annotations

import csv
import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from rl_lightning.callbacks.loggers import loggers

log = logging.getLogger(__name__)

#: File in `default_root_dir` with the names that services gave to this run.
RUNS_FILE = "logged_runs.json"


def continue_logs(trainer: Trainer, anew: bool) -> None:
    """Let loggers keep what an earlier run has written, before they open their files.

    Rows in `metrics.csv` stay, which Lightning would delete. Weights & Biases and MLflow go on with the same run, unless the
    logger names another one.

    Args:
        trainer: is to run.
        anew: training begins anew: the earlier `metrics.csv` gets another name, and services begin a new run.
    """
    names = {} if anew else _known(trainer)
    for number, logger in enumerate(loggers(trainer)):
        if isinstance(logger, CSVLogger) and logger._experiment is None and "://" not in logger.log_dir:
            if anew:
                _set_aside(Path(logger.log_dir) / KeptRows.NAME_METRICS_FILE)
            logger._experiment = KeptRows(logger.log_dir)
        name = names.get(_key(number, logger))
        if name is not None and isinstance(logger, WandbLogger) and logger._id is None:
            logger._id = logger._wandb_init["id"] = name
        if name is not None and isinstance(logger, MLFlowLogger) and logger._run_id is None:
            logger._run_id = name


def _set_aside(path: Path) -> None:
    if path.is_file():
        earlier = path.with_stem(f"{path.stem}-earlier")
        os.replace(path, earlier)
        log.warning("%s is of an earlier run and is now %s", path, earlier.name)


def remember_runs(trainer: Trainer) -> None:
    """Write down the names that Weights & Biases and MLflow gave to this run."""
    names = {
        _key(number, logger): str(logger.version)
        for number, logger in enumerate(loggers(trainer))
        if isinstance(logger, (WandbLogger, MLFlowLogger))
    }
    if names:
        (Path(trainer.default_root_dir) / RUNS_FILE).write_text(json.dumps(names), encoding="utf-8")


def forget_after(trainer: Trainer, step: int) -> None:
    """Drop rows of `metrics.csv` that were logged after a step: training goes on from there and logs them again."""
    for logger in loggers(trainer):
        if isinstance(logger, CSVLogger) and isinstance(logger.experiment, KeptRows):
            logger.experiment.forget_after(step)


def _known(trainer: Trainer) -> dict[str, str]:
    path = Path(trainer.default_root_dir) / RUNS_FILE
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # cut off by a kill
        log.warning("%s cannot be read: Weights & Biases and MLflow begin a new run", path)
        return {}
    return dict(found)


def _key(number: int, logger: Logger) -> str:
    return f"{type(logger).__name__} {number}"


class KeptRows(ExperimentWriter):
    """Writer of a `CSVLogger` that keeps the rows of an earlier run. The file is replaced as a whole, or appended to.

    Args:
        log_dir: directory of `metrics.csv`.
    """

    def _check_log_dir_exists(self) -> None:
        """Read the names of columns, where Lightning deletes the file."""
        if Path(self.metrics_file_path).is_file():
            with open(self.metrics_file_path, newline="", encoding="utf-8") as file:
                self.metrics_keys = list(csv.DictReader(file).fieldnames or [])

    def _rows(self) -> list[dict[str, str]]:
        """Return the rows; the last one is left out if a kill has cut it off."""
        with open(self.metrics_file_path, newline="", encoding="utf-8") as file:
            lines = file.readlines()
        return list(csv.DictReader(line for line in lines if line.endswith("\n")))

    def _replace(self, rows: Iterable[Mapping[str, object]], names: list[str]) -> None:
        part = f"{self.metrics_file_path}.part"
        with open(part, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=names)
            writer.writeheader()
            writer.writerows(rows)
        os.replace(part, self.metrics_file_path)

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        self._replace(self._rows(), fieldnames)

    def forget_after(self, step: int) -> None:
        """Drop rows of later steps."""
        if Path(self.metrics_file_path).is_file():
            self._replace([row for row in self._rows() if int(row["step"]) <= step], self.metrics_keys)

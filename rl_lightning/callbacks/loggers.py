"""Tables, histograms and settings for every logger that can show them.

One function a kind of thing, with one implementation a class of logger; `register` adds another:

    kind        TensorBoard    Weights & Biases   MLflow           CSV
    table       Text           Table              artifact, CSV    file beside metrics.csv
    histogram   Histograms     Histogram          artifact, JSON   file beside metrics.csv
    settings    HPARAMS        config             params           hparams.yaml

Another logger gets numbers only, which a warning says once. No logger's package is imported but by the logger itself.
"""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import singledispatch
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from torch import Tensor
from torch.utils.tensorboard.summary import hparams

log = logging.getLogger(__name__)

#: Names of the columns of a table, and its rows, with a cell a column.
Columns = Sequence[str]
Rows = Sequence[Sequence[object]]

_BINS = 64
_TOLD: set[type] = set()


def loggers(trainer: Trainer) -> list[Logger]:
    """Return the loggers to write to; none on ranks other than 0."""
    return list(trainer.loggers) if trainer.is_global_zero else []


# ---------------------------------------------------------------------------- tables


@singledispatch
def write_table(logger: Logger, tag: str, columns: Columns, rows: Rows, markdown: str, step: int) -> None:
    """Write a table.

    Args:
        logger: where to.
        tag: name of the table, such as `rollout/samples`.
        columns: their names.
        rows: one cell a column: text, a number, True or False, or None.
        markdown: the same table as Markdown.
        step: number of optimizer steps so far.
    """
    _numbers_only(logger)


@write_table.register
def _(logger: TensorBoardLogger, tag: str, columns: Columns, rows: Rows, markdown: str, step: int) -> None:
    logger.experiment.add_text(tag, markdown, step)


@write_table.register
def _(logger: WandbLogger, tag: str, columns: Columns, rows: Rows, markdown: str, step: int) -> None:
    import wandb

    table: Any = wandb.Table(columns=list(columns), data=[list(row) for row in rows], allow_mixed_types=True)
    logger.log_metrics({tag: table}, step)


@write_table.register
def _(logger: MLFlowLogger, tag: str, columns: Columns, rows: Rows, markdown: str, step: int) -> None:
    logger.experiment.log_text(logger.run_id, _csv(columns, rows), f"{tag}/step-{step:06d}.csv")


@write_table.register
def _(logger: CSVLogger, tag: str, columns: Columns, rows: Rows, markdown: str, step: int) -> None:
    _write(_beside(logger, tag, step, "csv"), _csv(columns, rows))


# ------------------------------------------------------------------------ histograms


@singledispatch
def write_histogram(logger: Logger, tag: str, values: Tensor, step: int) -> None:
    """Write a histogram.

    Args:
        logger: where to.
        tag: name of the histogram, such as `rollout/reward`.
        values: one-dimensional, at least one; what is not finite is left out by all but TensorBoard.
        step: number of optimizer steps so far.
    """
    _numbers_only(logger)


@write_histogram.register
def _(logger: TensorBoardLogger, tag: str, values: Tensor, step: int) -> None:
    logger.experiment.add_histogram(tag, values, step)


@write_histogram.register
def _(logger: WandbLogger, tag: str, values: Tensor, step: int) -> None:
    import wandb

    counts, edges = _binned(values)
    shown: Any = wandb.Histogram(np_histogram=(np.asarray(counts), np.asarray(edges)))
    logger.log_metrics({tag: shown}, step)


@write_histogram.register
def _(logger: MLFlowLogger, tag: str, values: Tensor, step: int) -> None:
    counts, edges = _binned(values)
    text = json.dumps({"counts": counts, "edges": edges})
    logger.experiment.log_text(logger.run_id, text, f"{tag}/step-{step:06d}.json")


@write_histogram.register
def _(logger: CSVLogger, tag: str, values: Tensor, step: int) -> None:
    counts, edges = _binned(values)
    rows = list(zip(edges, edges[1:], counts, strict=False))
    _write(_beside(logger, tag, step, "csv"), _csv(["from", "to", "count"], rows))


def _binned(values: Tensor) -> tuple[list[int], list[float]]:
    """Return the counts of bins and their edges, one more than bins."""
    finite = values.detach().flatten().double().cpu()
    finite = finite[finite.isfinite()]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)
    if low == high:
        low, high = low - 0.5, high + 0.5
    counts, edges = torch.histogram(finite, bins=_BINS, range=(low, high))
    return counts.long().tolist(), edges.tolist()


# -------------------------------------------------------------------------- settings


@singledispatch
def write_settings(logger: Logger, settings: Mapping[str, object], metrics: Sequence[str]) -> None:
    """Write the configuration of a run.

    Args:
        logger: where to.
        settings: name → value, nested.
        metrics: names of the metrics by which runs are compared.
    """
    logger.log_hyperparams(dict(settings))


@write_settings.register
def _(logger: TensorBoardLogger, settings: Mapping[str, object], metrics: Sequence[str]) -> None:
    # Not `logger.log_hyperparams`, which would add a point to the curves of the metrics.
    summaries = hparams(dict(_flat(settings)), dict.fromkeys(metrics, 0.0))
    for summary in summaries:
        logger.experiment._get_file_writer().add_summary(summary)


@write_settings.register
def _(logger: MLFlowLogger, settings: Mapping[str, object], metrics: Sequence[str]) -> None:
    # A parameter of a run can be set once; a run that goes on may have others.
    known = logger.experiment.get_run(logger.run_id).data.params
    new = {name: value for name, value in _flat(settings) if name not in known}
    logger.log_hyperparams(new)
    for name, value in _flat(settings):
        if name in known and known[name] != str(value)[:250]:
            logger.experiment.set_tag(logger.run_id, f"changed.{name}", str(value))


def _flat(settings: Mapping[str, object], place: str = "") -> Iterator[tuple[str, bool | float | str]]:
    """Yield the settings that say something, without the layers `class_path` and `init_args` of a YAML: `model.optimizer.lr`."""
    for key, value in settings.items():
        name = place if key in ("init_args", "class_path") and place else f"{place}.{key}" if place else str(key)
        if isinstance(value, Mapping):
            yield from _flat(value, name)
        elif key == "class_path":
            yield name, str(value).rsplit(".", 1)[-1]
        elif isinstance(value, (bool, int, float)):
            yield name, value
        elif value not in (None, [], ""):
            yield name, str(value)


# ------------------------------------------------------------------- what is written


@singledispatch
def flush(logger: Logger) -> None:
    """Write to the disk what the logger holds in memory."""
    logger.save()


@flush.register
def _(logger: TensorBoardLogger) -> None:
    logger.experiment.flush()


@flush.register
def _(logger: WandbLogger) -> None:
    pass  # its own process has got everything


def run_directory(trainer: Trainer) -> str:
    """Return where a run keeps its files: with its curves, if they are files of its own, else in `default_root_dir`.

    Every rank must call this.
    """
    own = trainer.loggers and isinstance(trainer.loggers[0], (TensorBoardLogger, CSVLogger))
    return str(trainer.log_dir if own else trainer.default_root_dir)


def _beside(logger: CSVLogger, tag: str, step: int, suffix: str) -> Path:
    return Path(logger.log_dir) / tag.replace("/", "_") / f"step-{step:06d}.{suffix}"


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="")


def _csv(columns: Columns, rows: Rows) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()


def _numbers_only(logger: Logger) -> None:
    kind = type(logger)
    if kind not in _TOLD:
        _TOLD.add(kind)
        log.warning(
            "%s gets numbers only: tables and histograms go to TensorBoard, Weights & Biases, MLflow and CSV files; functions "
            "for it can be registered in rl_lightning.callbacks.loggers",
            kind.__name__,
        )

"""Settings of callbacks and sources that nothing else tries: each changes something."""

import logging
from types import SimpleNamespace

import pytest

from rl_lightning.algorithms import SFT
from rl_lightning.callbacks import (
    CollapseWarning,
    FirstValidation,
    Histograms,
    RolloutProgressBar,
    SampleTable,
    SpreadWarning,
    histograms,
    samples,
)
from rl_lightning.data import DemonstrationDataModule, TableExamples
from rl_lightning.errors import UserError
from rl_lightning.hooks import Watch
from tests.support import random_rollout, trainer

ROWS = [{"prompt": f"{n}+1=", "completion": f"#{n + 1}"} for n in range(4)]


def stand_in(number=0, **more):
    """What callbacks look at of a Trainer."""
    return SimpleNamespace(current_epoch=number, global_step=number, is_global_zero=True, loggers=["one"], **more)


@pytest.mark.parametrize(
    ("settings", "name", "series", "warns"),
    [
        ({}, "policy/entropy", [1.0, 0.001], False),
        ({"entropy_share": 0.5}, "policy/entropy", [1.0, 0.3], True),
        ({}, "rollout/length_mean", [10.0, 25.0], False),
        ({"length_factor": 2.0}, "rollout/length_mean", [10.0, 25.0], True),
    ],
)
def test_what_counts_as_a_collapse(settings, name, series, warns, caplog):
    callback, module = CollapseWarning(first=1, **settings), SimpleNamespace(learns_from="rollouts")
    with caplog.at_level(logging.WARNING):
        for number, value in enumerate(series):
            logged = {name: value}
            callback.on_rollout_end(stand_in(), module, SimpleNamespace(metrics=logged))
            callback.on_train_epoch_end(stand_in(number, callback_metrics=logged), module)
    assert bool(caplog.records) == warns


@pytest.mark.parametrize(("in_a_row", "expected"), [(1, 1), (3, 3)])
def test_how_many_rollouts_without_spread_are_too_many(in_a_row, expected, caplog):
    callback, module, shown = SpreadWarning(in_a_row=in_a_row), SimpleNamespace(learns_from="rollouts"), 0
    rollout = random_rollout(groups=2, group_size=2)
    rollout.raw_rewards = rollout.raw_rewards.new_ones(4)
    with caplog.at_level(logging.WARNING):
        while not caplog.records:
            shown += 1
            callback.on_rollout_rewards(stand_in(), module, rollout)
            callback.on_rollout_end(stand_in(), module, rollout)
    assert shown == expected


@pytest.mark.parametrize(("kind", "writer"), [(Histograms, (histograms, "write_histogram")), (SampleTable, (samples, "write_table"))])  # fmt: skip
@pytest.mark.parametrize(("every", "expected"), [(1, [0, 1, 2, 3]), (3, [0, 3])])
def test_which_rollouts_are_written(kind, writer, every, expected, monkeypatch):
    written = []
    monkeypatch.setattr(*writer, lambda logger, tag, *content: written.append(content[-1]))
    for number in range(4):
        kind(every_n_rollouts=every).on_rollout_end(stand_in(number), None, random_rollout())
    assert sorted(set(written)) == expected


@pytest.mark.parametrize(
    ("settings", "hooked"), [({}, True), ({"generation_bar": False}, False), ({"refresh_rate": 0}, False)]
)
def test_whether_a_bar_is_drawn_while_responses_are_sampled(settings, hooked):
    bar, watch = RolloutProgressBar(**settings), Watch()
    bar.setup(stand_in(datamodule=SimpleNamespace(watch=watch)), None, "fit")
    assert (watch.on_progress is not None) == hooked


@pytest.mark.parametrize(("enabled", "expected"), [(True, [0, 1]), (False, [1])])
def test_whether_a_run_validates_before_its_first_step(enabled, expected, tiny_policy, tmp_path):
    steps = []

    class Watching(FirstValidation):
        def on_validation_start(self, trainer, pl_module):
            steps.append(trainer.global_step)

    data = DemonstrationDataModule(prompts={"train": ROWS, "val": ROWS}, batch_size=4)
    trainer(tmp_path, [Watching(enabled=enabled)], online=False, max_epochs=1, limit_val_batches=1).fit(
        SFT(tiny_policy), datamodule=data
    )
    assert steps == expected


def test_a_column_of_texts_to_learn_whole_is_named():
    rows = [{"body": "1+1=2", "title": "sum"}]
    assert TableExamples(rows, text_column="body").load("train")[0].response == "1+1=2"
    with pytest.raises(UserError):
        TableExamples(rows).load("train")

"""How TensorBoard opens: the pinned curves, the layout of panels."""

import argparse
import json
import re
import subprocess
import sys
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rl_lightning import TensorBoard, Trainer
from rl_lightning.callbacks import DurableLogs
from rl_lightning.callbacks.dashboard import PANELS, Dashboard, layout
from rl_lightning.cli.board import PINNED, board, pinned
from rl_lightning.errors import UserError

ROOT = Path(__file__).parents[3]
#: What a run of GRPO logs, and what one of SFT logs.
ONLINE = [
    "rollout/reward_mean", "val/pass@1", "reward/final_answer", "kl/k3", "policy/ratio_mean", "policy/ess",
    "policy/clip_fraction_low", "policy/entropy", "rollout/length_mean", "rollout/truncated_fraction",
    "rollout/all_right_fraction", "rollout/failed_fraction", "train/grad_norm", "speed/tokens_per_s", "time/train_s",
    "speed/train_roofline",
]  # fmt: skip
OFFLINE = [
    "train/loss",
    "val/loss",
    "val/token_accuracy",
    "policy/entropy",
    "train/grad_norm",
    "speed/train_tokens_per_s",
]


@pytest.mark.parametrize(("online", "logged"), [(True, ONLINE), (False, OFFLINE)])
def test_panels_have_a_chart_for_what_is_logged(online, logged):
    shown = layout(online)
    assert list(shown) == ["learning", "trust", "staying close", "health", "speed"]
    patterns = [name for charts in shown.values() for _, names in charts.values() for name in names]
    for name in logged:
        assert any(re.fullmatch(pattern, name) for pattern in patterns), name


def test_an_online_run_has_no_chart_of_a_loss_that_is_zero_and_an_offline_one_none_of_rollouts():
    assert "loss" not in layout(online=True)["learning"]
    assert "loss" in layout(online=False)["learning"]
    assert "reward" not in layout(online=False)["learning"]
    assert set(layout(online=True)["learning"]) | set(layout(online=False)["learning"]) == set(PANELS["learning"])


def test_tensorboard_opens_on_the_curves_that_matter_and_ends_with_counters(tmp_path):
    logger = TensorBoard(tmp_path)
    logger.of_rollouts = True
    logged = dict.fromkeys([*ONLINE, "audit/a", "dpo/margin", "train/loss", "work/tokens"], 0.5) | {
        "val/pass@1": 0.25,
        "epoch": 3.0,
    }
    logger.log_metrics(logged, step=7)
    logger.experiment.flush()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    tags = events.Tags()["scalars"]
    groups = sorted({tag.split("/")[0] for tag in tags})  # by the codes of characters, as TensorBoard sorts them
    assert (groups[0], groups[-1]) == ("Overview", "work")
    assert [tag for tag in sorted(tags) if "Overview/" in tag] == [
        "Overview/rollout/reward_mean",
        "Overview/val/pass@1",
    ]
    assert set(logged) - set(tags) == {"epoch"}
    ((step, value),) = [(one.step, one.value) for one in events.Scalars("Overview/val/pass@1")]
    assert (step, value) == (7, 0.25)
    assert [one.value for one in events.Scalars("work/epoch")] == [3.0]


def test_the_loss_is_among_the_first_where_it_says_something(tmp_path):
    logger = TensorBoard(tmp_path)
    logger.log_metrics(dict.fromkeys(OFFLINE, 1.0), step=0)
    logger.experiment.flush()
    tags = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Tags()["scalars"]
    assert {"Overview/train/loss", "Overview/val/loss", "Overview/val/token_accuracy"} <= set(tags)


@pytest.mark.parametrize(("kind", "online"), [("rollouts", True), ("samples", False)])
def test_the_first_curves_follow_from_the_algorithm_and_not_from_what_was_logged_so_far(kind, online, tmp_path):
    logger, module = TensorBoard(tmp_path), SimpleNamespace(learns_from=kind, evaluates_on=())
    trainer = Trainer(logger=logger, default_root_dir=tmp_path, max_epochs=1, enable_checkpointing=False)
    looks = [one for one in trainer.callbacks if isinstance(one, (DurableLogs, Dashboard))]
    for one in looks:
        one.setup(trainer, module, "fit")
        if isinstance(one, DurableLogs):  # what a run that goes on logs first
            one.on_load_checkpoint(
                trainer, module, {"metrics_of_this_step": {"step": 0, "metrics": {"train/loss": 1.0}}}
            )
        else:
            one.settings = {"seed": 1}
    for one in looks:
        one.on_train_start(trainer, module)
    for step in (1, 2):  # a table of samples logs what was sampled for it once
        logger.log_metrics({"train/loss": 1.0} | ({"rollout/reward_mean": 0.5} if step == 1 else {}), step)
    logger.experiment.flush()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    shown = "Overview/train/loss" in events.Tags()["scalars"]
    assert shown != online and (online or len(events.Scalars("Overview/train/loss")) == 3)


def test_a_logger_of_lightnings_own_is_left_as_it_is(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="", version="")
    trainer = Trainer(logger=logger, default_root_dir=tmp_path, max_epochs=1, enable_checkpointing=False)
    assert trainer.loggers == [logger]
    assert isinstance(Trainer(default_root_dir=tmp_path, max_epochs=1).logger, TensorBoard)


def test_the_address_pins_the_curves_that_matter():
    query, _, page = pinned().partition("#")
    cards = json.loads(unquote(query.removeprefix("?pinnedCards=")))
    assert [card["tag"] for card in cards] == list(PINNED)
    assert PINNED[0].startswith("rollout/")
    assert PINNED[1].startswith("val/")
    assert page == "timeseries"


def test_a_directory_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match="there is no directory"):
        board(argparse.ArgumentParser(), [str(tmp_path / "nothing")])


def test_the_command_serves_tensorboard_at_the_printed_address(tmp_path):
    command = [sys.executable, "-m", "rl_lightning", "tensorboard", str(tmp_path), "--port=0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None
            assert str(tmp_path) in server.stdout.readline()
            address = server.stdout.readline().strip()
            assert address.endswith(pinned())
            with urllib.request.urlopen(address.partition("?")[0], timeout=30) as page:
                assert b"TensorBoard" in page.read()
        finally:
            server.terminate()

"""A run that is killed loses nothing that it had logged before its last checkpoint."""

import subprocess
import sys
from pathlib import Path

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger

from examples.drill.__main__ import SIGNALS, draw_kills
from examples.drill.results import curves, first_difference
from rl_lightning.callbacks import DurableLogs, GracefulStop, StepCheckpoint
from tests.invariants.spread import fit
from tests.invariants.spread_stop import Tell


def run(policy, directory, *callbacks, **settings):
    logger = TensorBoardLogger(directory, name="", version="", default_hp_metric=False)
    fit(
        "grpo", policy, directory, "float32", callbacks, logger=logger, enable_checkpointing=True, **settings
    )  # fmt: skip
    return curves(directory)


def test_curves_have_no_holes_where_a_run_was_killed(tiny_policy, tmp_path):
    """Of the attempt that was killed only what is in its checkpoint is left here, as if its loggers had written nothing since."""
    keep = StepCheckpoint(dirpath=tmp_path / "kept", save_top_k=-1, filename="{step}")
    whole = run(tiny_policy, tmp_path / "whole", DurableLogs(), keep)
    assert sorted(path.name for path in (tmp_path / "kept").glob("step=*")) == [f"step={n}.ckpt" for n in range(1, 7)]
    for stop in range(1, 7):
        rest = run(
            tiny_policy, tmp_path / f"from-{stop}", DurableLogs(), ModelCheckpoint(tmp_path / "other"),
            ckpt_path=tmp_path / "kept" / f"step={stop}.ckpt",
        )  # fmt: skip
        # A checkpoint within an epoch brings its own step's metrics along; one from its end comes after they are written.
        first = stop - 1 if stop % 2 else stop
        for tag, points in whole.items():
            assert rest.get(tag, {}) == {step: value for step, value in points.items() if step >= first}, (tag, stop)


def test_without_care_points_are_lost(tiny_policy, tmp_path):
    """The comparison above can fail."""
    keep = ModelCheckpoint(tmp_path / "kept", save_top_k=-1, filename="{step}", every_n_train_steps=1)
    whole = run(tiny_policy, tmp_path / "whole", keep)
    other = ModelCheckpoint(tmp_path / "other")
    within = run(tiny_policy, tmp_path / "1", other, ckpt_path=tmp_path / "kept" / "step=1.ckpt")
    assert 0 in whole["train/loss"] and 0 not in within["train/loss"]
    end = run(
        tiny_policy, tmp_path / "2", ModelCheckpoint(tmp_path / "third"), ckpt_path=tmp_path / "kept" / "step=2.ckpt"
    )
    assert 1 in whole["val/pass@1"] and 1 not in end["val/pass@1"]


@pytest.mark.parametrize("moment", ["sampling", "backward"])
def test_a_run_that_was_stopped_goes_on_under_the_same_steps(moment, tiny_policy, tmp_path):
    whole = run(tiny_policy, tmp_path / "whole", DurableLogs())
    with pytest.raises(SystemExit):
        run(tiny_policy, tmp_path / "stopped", DurableLogs(), Tell(moment, rank=0), GracefulStop())
    (last,) = (tmp_path / "stopped").rglob("last.ckpt")
    assert run(tiny_policy, tmp_path / "stopped", DurableLogs(), ckpt_path=last) == whole


def test_two_values_at_one_step_are_seen(tmp_path):
    for value in (1.0, 2.0):
        logger = TensorBoardLogger(tmp_path / str(value), name="", version="")
        logger.log_metrics({"x": value, "time/x": value}, step=3)
        logger.finalize("success")
    assert curves(tmp_path / "1.0")["x"] == {3: 1.0} and "time/x" not in curves(tmp_path / "1.0")
    with pytest.raises(ValueError, match=r"x at step 3 was logged as 1\.0 and as 2\.0"):
        curves(tmp_path)


def test_a_difference_is_named():
    import torch

    whole = {"a": [1, {"w": torch.tensor([1.0, 2.0])}], "b": None}
    assert first_difference({"a": [1, {"w": torch.tensor([1.0, 2.0])}], "b": None}, whole) is None
    assert first_difference({"a": [1, {"w": torch.tensor([1.0, 2.1])}], "b": None}, whole) == "/a/1/w"
    assert first_difference({"a": [1], "b": None}, whole) == "/a"
    assert first_difference({"a": whole["a"]}, whole) == ": ['b']"
    assert first_difference({**whole, "b": 3}, whole) == "/b: 3 instead of None"


def test_kills_are_a_function_of_the_seed():
    kills = draw_kills(80, seed=3)
    assert kills == draw_kills(80, seed=3) != draw_kills(80, seed=4)
    assert {number for kill in kills for number in kill.signals} == set(SIGNALS)
    assert {len(kill.moments) for kill in kills} == {1, 2}
    assert all(0 < moment < 1 for kill in kills for moment in kill.moments)


@pytest.mark.slow
def test_the_drill(tmp_path):
    """Two kills; `make drill` has fifty."""
    done = subprocess.run(
        [sys.executable, "-m", "examples.drill", "--kills=2", "--seed=5", f"--directory={tmp_path}"],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "2 of 2 identical"

"""A run that is killed loses nothing that it had logged before its last checkpoint."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger

import examples.drill.__main__ as drill
from examples.drill.__main__ import SIGNALS, draw_kills
from examples.drill.results import curves, differences, first_difference, last_checkpoint
from rl_lightning.callbacks import CollapseWarning, DurableLogs, GracefulStop, StepCheckpoint
from rl_lightning.strategies import atomic_save
from tests.checks import cases
from tests.invariants.spread import Tell, fit


def run(policy, directory, *callbacks, **settings):
    logger = TensorBoardLogger(directory, name="", version="", default_hp_metric=False)
    fit(
        "grpo", policy, directory, "float32", callbacks, logger=logger, enable_checkpointing=True, **({"max_epochs": 3} | settings),
    )  # fmt: skip
    return curves(directory)


@pytest.mark.parametrize("stops", [(1, 2), pytest.param((3, 4, 5, 6), marks=pytest.mark.slow)], ids=["some", "others"])
def test_curves_have_no_holes_where_a_run_was_killed(stops, tiny_policy, tmp_path):
    """Of the attempt that was killed only what is in its checkpoint is left here, as if its loggers had written nothing since."""
    keep = StepCheckpoint(dirpath=tmp_path / "kept", save_top_k=-1, filename="{step}")
    whole = run(tiny_policy, tmp_path / "whole", DurableLogs(), keep)
    assert sorted(path.name for path in (tmp_path / "kept").glob("step=*")) == [f"step={n}.ckpt" for n in range(1, 7)]
    for stop in stops:
        rest = run(
            tiny_policy, tmp_path / f"from-{stop}", DurableLogs(), ModelCheckpoint(tmp_path / "other"),
            ckpt_path=tmp_path / "kept" / f"step={stop}.ckpt",
        )  # fmt: skip
        # A checkpoint within an epoch brings its own step's metrics along; one from its end comes after they are written.
        first = stop - 1 if stop % 2 else stop
        for tag, points in whole.items():
            assert rest.get(tag, {}) == {step: value for step, value in points.items() if step >= first}, (tag, stop)


@pytest.mark.parametrize(
    ("stop", "tag"), [(1, "train/loss"), pytest.param(2, "val/pass@1", marks=pytest.mark.slow)], ids=["within", "end"]
)
def test_without_care_points_are_lost(stop, tag, tiny_policy, tmp_path):
    """The comparison above can fail."""
    keep = ModelCheckpoint(tmp_path / "kept", save_top_k=-1, filename="{step}", every_n_train_steps=1)
    whole = run(tiny_policy, tmp_path / "whole", keep, max_epochs=stop)
    checkpoint = tmp_path / "kept" / f"step={stop}.ckpt"
    rest = run(
        tiny_policy, tmp_path / "rest", ModelCheckpoint(tmp_path / "other"), ckpt_path=checkpoint, max_epochs=stop
    )
    assert stop - 1 in whole[tag] and stop - 1 not in rest[tag]


@pytest.mark.parametrize(
    "moment", cases(["sampling", "backward", "validation"], soon=lambda moment: moment == "validation")
)
def test_a_run_that_was_stopped_goes_on_under_the_same_steps(moment, tiny_policy, tmp_path):
    """What callbacks have seen is the same too, also of a step that lies before the signal and is compared behind it."""

    def watching(place):
        best = ModelCheckpoint(tmp_path / place / "best", monitor="policy/entropy", filename="{step}", save_last=True)
        return [DurableLogs(), CollapseWarning(), best]

    expected = watching("whole")
    whole = run(tiny_policy, tmp_path / "whole", *expected)
    with pytest.raises(SystemExit):
        run(tiny_policy, tmp_path / "stopped", *watching("stopped"), Tell(moment, rank=0), GracefulStop())
    (last,) = (tmp_path / "stopped").rglob("last.ckpt")
    actual = watching("stopped")
    assert run(tiny_policy, tmp_path / "stopped", *actual, ckpt_path=last) == whole
    assert actual[1].state_dict() == expected[1].state_dict()
    assert len(actual[1].state_dict()["seen"]["policy/entropy"]) == 3
    assert actual[2].best_model_score == expected[2].best_model_score is not None


@pytest.mark.slow  # with them it is in `make test`, above
@pytest.mark.parametrize("moment", ["sampling", "validation"])
def test_a_collapse_is_looked_for_without_durable_logs_too(moment, tiny_policy, tmp_path):
    """Between the last step of an epoch and its end nothing else knows the entropy of that step."""
    expected, actual = CollapseWarning(), CollapseWarning()
    run(tiny_policy, tmp_path / "whole", expected)
    with pytest.raises(SystemExit):
        run(tiny_policy, tmp_path / "stopped", CollapseWarning(), Tell(moment, rank=0), GracefulStop())
    (last,) = (tmp_path / "stopped").rglob("last.ckpt")
    run(tiny_policy, tmp_path / "stopped", actual, ckpt_path=last)
    assert actual.state_dict() == expected.state_dict()
    assert len(actual.state_dict()["seen"]["policy/entropy"]) == 3


def test_two_values_at_one_step_are_seen(tmp_path):
    for value in (1.0, 2.0):
        logger = TensorBoardLogger(tmp_path / str(value), name="", version="")
        logger.log_metrics({"x": value, "time/x": value}, step=3)
        logger.finalize("success")
    assert curves(tmp_path / "1.0")["x"] == {3: 1.0} and "time/x" not in curves(tmp_path / "1.0")
    with pytest.raises(ValueError, match=r"x at step 3 was logged as 1\.0 and as 2\.0"):
        curves(tmp_path)


def test_a_difference_is_named():
    whole = {"a": [1, {"w": torch.tensor([1.0, 2.0])}], "b": None}
    assert first_difference({"a": [1, {"w": torch.tensor([1.0, 2.0])}], "b": None}, whole) is None
    odd = first_difference({"a": [1, {"w": torch.tensor([1.0, 2.5])}], "b": None}, whole)
    assert odd == "/a/1/w: 1 of 2 elements differ, by 0.5 at most"
    assert first_difference({"a": [1], "b": None}, whole).startswith("/a: [1] instead of [1, {")
    assert first_difference({"a": whole["a"]}, whole) == "/b: missing"
    assert first_difference({**whole, "b": 3}, whole) == "/b: 3 instead of None"
    assert list(differences({**whole, "b": 3, "c": 1}, whole)) == ["/c: too much", "/b: 3 instead of None"]


def test_what_is_no_number_is_the_same_twice(tmp_path):
    for place in ("one", "other"):
        logger = TensorBoardLogger(tmp_path / place, name="", version="")
        logger.log_metrics({"x": float("nan")}, step=3)
        logger.finalize("success")
    assert curves(tmp_path)["x"] == {3: "nan"}
    nan = {"w": torch.tensor([1.0, float("nan")]), "x": float("nan")}
    assert first_difference({"w": nan["w"].clone(), "x": float("nan")}, nan) is None
    assert first_difference({**nan, "x": 1.0}, nan) == "/x: 1.0 instead of nan"
    assert first_difference({**nan, "w": torch.tensor([float("nan"), 1.0])}, nan) is not None


@pytest.mark.parametrize("killed", ["before", "between", "after"])
def test_the_last_checkpoint_is_that_of_the_last_step(killed, tmp_path):
    """A run that is killed between the last checkpoints of two callbacks has nothing left to do."""
    steps = {"before": (3, 3), "between": (4, 3), "after": (4, 4)}[killed]
    for name, step in zip(("checkpoints", "steps"), steps, strict=True):
        atomic_save({"global_step": step, "from": name}, tmp_path / name / "last.ckpt")
    atomic_save({"global_step": 1, "from": "old"}, tmp_path / "steps" / "last-v1.ckpt")
    found = last_checkpoint(tmp_path)
    assert found == {"global_step": max(steps), "from": "checkpoints" if killed == "between" else "steps"}


def test_the_drill_hears_ctrl_c_and_ends_where_it_is_ignored(tmp_path, monkeypatch, capsys):
    """As a background job of a shell, whose children ignore it too."""
    heard = []

    def never(algorithm, directory, after, number, seconds):
        heard.append(signal.getsignal(signal.SIGINT))
        (directory / "hf").mkdir(parents=True)
        return 0

    monkeypatch.setattr(drill, "_kill", never)
    monkeypatch.setattr(drill, "undisturbed", lambda *_: ({}, 1.0))
    monkeypatch.setattr(sys, "argv", ["drill", "--kills=1", f"--directory={tmp_path}"])
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(SystemExit) as ended:
            drill.main()
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.value.code == 1 and 1 < len(heard) < 20 and set(heard) == {signal.default_int_handler}
    printed = capsys.readouterr().out
    assert "came too late 8 times, or was not heard" in printed
    (record,) = tmp_path.rglob("drill.txt")
    assert record.read_text().splitlines() == printed.splitlines()[:-1]  # the line is not lost with the terminal
    (kept,) = tmp_path.rglob("differences.txt")
    assert "came too late" in kept.read_text()


def test_kills_are_a_function_of_the_seed():
    kills = draw_kills(80, seed=3)
    assert kills == draw_kills(80, seed=3) != draw_kills(80, seed=4)
    assert {number for kill in kills for number in kill.signals} == set(SIGNALS)
    assert {len(kill.moments) for kill in kills} == {1, 2}
    assert all(0 < moment < 1 for kill in kills for moment in kill.moments)
    assert {kill.algorithm for kill in draw_kills(80, seed=3, algorithms=["episodes"])} == {"episodes"}


@pytest.mark.slow
def test_the_drill(tmp_path):
    """One kill; `make drill` has fifty, of every algorithm."""
    done = subprocess.run(
        [sys.executable, "-m", "examples.drill", "--kills=1", "--only=grpo", "--seed=5", f"--directory={tmp_path}"],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "1 of 1 identical"

"""What every run has, from the command line and from Python."""

import sys

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar, Timer

from rl_lightning.callbacks import GracefulStop, RolloutLines, RolloutProgressBar, RunCard, RunLock, Speed
from rl_lightning.defaults import complete, default_callbacks, refusals_of_the_trainer
from rl_lightning.errors import UserError
from rl_lightning.strategies import AtomicCheckpointIO


def kinds(callbacks):
    return [type(callback) for callback in callbacks]


def test_a_listed_callback_is_not_added_again():
    every = kinds(default_callbacks())
    assert {RunCard, Speed, GracefulStop, RunLock, RolloutLines} <= set(every)
    for own in (Speed(peak_flops=1.0, bandwidth=1.0), GracefulStop("00:01:00:00"), RunLock()):
        assert kinds(default_callbacks([own])) == [kind for kind in every if kind is not type(own)]


def test_bars_in_a_terminal_lines_elsewhere_and_one_of_them_at_most(monkeypatch):
    for terminal, expected in ((True, RolloutProgressBar), (False, RolloutLines)):
        monkeypatch.setattr(sys.stdout, "isatty", lambda terminal=terminal: terminal)
        assert [kind for kind in kinds(default_callbacks()) if issubclass(kind, ProgressBar)] == [expected]
        for none in (default_callbacks([RichProgressBar()]), default_callbacks(progress_bar=False)):
            assert not [kind for kind in kinds(none) if issubclass(kind, ProgressBar)]


def test_a_trainer_with_the_defaults_saves_atomically_and_stops_in_time(tmp_path):
    trainer = Trainer(**complete({"max_time": "00:00:00:05", "default_root_dir": tmp_path, "accelerator": "cpu"}))
    assert isinstance(trainer.strategy.checkpoint_io, AtomicCheckpointIO)
    assert Timer not in kinds(trainer.callbacks)
    stop = next(callback for callback in trainer.callbacks if isinstance(callback, GracefulStop))
    assert stop._limit == 5
    assert trainer.log_every_n_steps == 1


def test_what_the_user_sets_stays():
    settings = complete({"log_every_n_steps": 7, "plugins": ["mine"], "callbacks": RunCard()})
    assert settings["log_every_n_steps"] == 7
    assert settings["plugins"] == ["mine"]
    assert kinds(settings["callbacks"]).count(RunCard) == 1


def test_what_the_trainer_refuses_is_one_line(tmp_path):
    with pytest.raises(UserError, match="limit_val_batches: 0 switches validation off"):
        complete({"check_val_every_n_epoch": 0})
    with pytest.raises(UserError, match=r"^trainer: .*max_epoch"), refusals_of_the_trainer():
        Trainer(**complete({"max_epoch": 3, "default_root_dir": tmp_path}))

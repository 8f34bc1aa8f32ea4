"""A warning of responses that are cut off names the cap that does it."""

import logging
from types import SimpleNamespace

import pytest
import torch

from rl_lightning.callbacks import RoomWarning
from rl_lightning.generation import Sampling
from tests.support import random_rollout


def warned(caplog, share, truncated, turns=None, times=1, learns_from="rollouts", **sampling):
    rollout = random_rollout(groups=1, group_size=len(truncated))
    rollout.truncated, rollout.turns = torch.tensor(truncated), turns
    rollout.metrics = {"rollout/truncated_fraction": share}
    data = SimpleNamespace(sampling=Sampling(**{"max_new_tokens": 9} | sampling))
    trainer = SimpleNamespace(datamodule=data, is_global_zero=True, current_epoch=3)
    callback = RoomWarning()
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(times):
            callback.on_rollout_end(trainer, SimpleNamespace(learns_from=learns_from), rollout)
    return [record.getMessage() for record in caplog.records], callback


def test_a_rollout_of_which_more_than_half_is_cut_off_is_said_once(caplog):
    (said,), callback = warned(caplog, 0.75, [True, True, True, False], times=3)
    assert "75 % of the responses are cut off (rollout 4" in said and "sampling.max_new_tokens (9)" in said
    again = RoomWarning()
    again.load_state_dict(callback.state_dict())
    assert again.state_dict() == {"warned": True}
    assert warned(caplog, 0.5, [True, True, False, False])[0] == []
    assert warned(caplog, 1.0, [True, True], learns_from="samples")[0] == []


@pytest.mark.parametrize(
    ("turns", "words"),
    [
        ([[1, 0, 2], [1, 1, 0]], "1 had no room left under sampling.max_new_tokens (9 tokens, replies included) and 1 had had sampling.max_turns (2)"),
        ([[1, 0, 2], [1, 0, 2]], ": 2 had had sampling.max_turns (2): raise it"),
        ([[1, 1, 1], [1, 1, 1]], ": 2 had no room left under sampling.max_new_tokens (9 tokens, replies included): raise it"),
    ],
)  # fmt: skip
def test_in_an_environment_replies_and_turns_are_told_apart(caplog, turns, words):
    (said,), _ = warned(caplog, 1.0, [True, True], torch.tensor(turns), max_turns=2)
    assert words in said and "environment.unfinished" in said

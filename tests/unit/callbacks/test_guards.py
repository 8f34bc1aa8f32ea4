"""Numbers that have gone wrong."""

import copy
import logging
from types import SimpleNamespace

import pytest
import torch

from rl_lightning.algorithms import GRPO, OptimizerOptions
from rl_lightning.callbacks import CollapseWarning, NonFiniteGuard
from rl_lightning.callbacks.guards import replay
from rl_lightning.errors import UserError
from tests.support import StoredRollouts, random_rollout, trainer


class Breaks(GRPO):
    """Has an objective that is not finite in some optimizer steps."""

    broken = (1,)
    value = float("nan")

    def objective(self, batch, logprobs):
        objective = super().objective(batch, logprobs)
        return objective * self.value if self.global_step in self.broken else objective


class Weights(NonFiniteGuard):
    """Keeps the weights after every optimizer step."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.weights = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch.ends_step:
            self.weights.append(pl_module.policy.lm_head.weight.detach().clone())
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


def fit(policy, directory, kind=Breaks, **settings):
    """Four optimizer steps of two microbatches each."""
    module = kind(policy=policy, kl_coef=0.0, optimizer=OptimizerOptions(lr=1e-2, weight_decay=0.1))
    data = StoredRollouts(random_rollout(dtype=torch.float32), group_size=4, minibatch_size=4, microbatch_size=2)
    guard = Weights(**settings)
    run = trainer(directory, [guard], gradient_clip_val=1.0)
    run.fit(module, datamodule=data)
    return run, module, guard


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_moves_nothing_and_the_next_one_does(
    tiny_policy, tmp_path, value, monkeypatch, caplog
):
    monkeypatch.setattr(Breaks, "value", value)
    run, _, guard = fit(tiny_policy, tmp_path)
    assert [bool(w.isfinite().all()) for w in guard.weights] == [True] * 4
    assert torch.equal(guard.weights[0], guard.weights[1])  # neither momentum nor weight decay
    assert not torch.equal(guard.weights[1], guard.weights[2])
    assert run.callback_metrics["guard/skipped_steps"] == 1
    assert "Optimizer step 2 had a gradient that is not finite" in caplog.text
    assert [path.name for path in tmp_path.glob("not_finite*")] == ["not_finite-step2.pt"]


def test_the_file_reproduces_the_step(tiny_policy, tmp_path):
    fit(tiny_policy, tmp_path)
    kept = tmp_path / "not_finite-step2.pt"
    loss = replay(kept, loaded(Always, tiny_policy))
    assert loss.isnan()
    assert replay(kept, loaded(GRPO, tiny_policy)).isfinite()  # what broke it was the objective, not the data


class Always(Breaks):
    broken = (0,)


def loaded(kind, policy):
    module = kind(policy=policy, kl_coef=0.0)
    module.configure_model()
    return module


def test_too_many_in_a_row_end_the_run_with_one_line(tiny_policy, tmp_path, monkeypatch):
    monkeypatch.setattr(Breaks, "broken", (0, 1, 2, 3))
    with pytest.raises(UserError, match="3 optimizer steps in a row had gradients that are not finite") as error:
        fit(tiny_policy, tmp_path, max_in_a_row=3)
    assert "\n" not in str(error.value)
    monkeypatch.setattr(Breaks, "broken", (0, 2))
    fit(tiny_policy, tmp_path, max_in_a_row=2)  # two, but not in a row


def test_counts_survive_a_checkpoint():
    guard, other = NonFiniteGuard(), NonFiniteGuard()
    guard._skipped, guard._in_a_row = 7, 2
    other.load_state_dict(copy.deepcopy(guard.state_dict()))
    assert (other._skipped, other._in_a_row) == (7, 2)
    with pytest.raises(UserError, match="max_in_a_row"):
        NonFiniteGuard(max_in_a_row=0)


def warnings_of(callback, caplog, **series):
    """Let a callback see what rollouts log, and return what it says."""
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        for number, values in enumerate(zip(*series.values(), strict=True)):
            names = {name.replace("_", "/", 1): torch.tensor(value) for name, value in zip(series, values, strict=True)}
            callback.on_train_epoch_end(SimpleNamespace(callback_metrics=names, current_epoch=number), None)
    return [record.getMessage() for record in caplog.records]


def test_a_collapse_is_said_once(caplog):
    callback = CollapseWarning(first=2)
    said = warnings_of(callback, caplog, policy_entropy=[1.0, 1.0, 0.06, 0.04, 0.03], rollout_length_mean=[10.0] * 5)
    assert len(said) == 1 and "entropy is 0.04" in said[0] and "(rollout 3; said once)" in said[0]
    again = CollapseWarning(first=2)
    again.load_state_dict(copy.deepcopy(callback.state_dict()))
    assert warnings_of(again, caplog, policy_entropy=[0.01]) == []


@pytest.mark.parametrize(("length", "warns"), [(29.0, False), (31.0, True), (3.4, False), (3.3, True)])
def test_lengths_may_run_away_in_both_directions(length, warns, caplog):
    said = warnings_of(CollapseWarning(first=2), caplog, rollout_length_mean=[9.0, 11.0, length])
    assert bool(said) == warns


def test_a_run_that_goes_well_is_left_alone(caplog):
    assert warnings_of(CollapseWarning(), caplog, policy_entropy=[1.0, 0.9, 0.7, 0.5, 0.4, 0.3, 0.2, 0.1]) == []

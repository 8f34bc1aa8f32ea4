"""Numbers that have gone wrong."""

import copy
import logging
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision

from rl_lightning.algorithms import GRPO, OptimizerOptions
from rl_lightning.callbacks import CollapseWarning, NonFiniteGuard, SpreadWarning
from rl_lightning.callbacks.guards import replay
from rl_lightning.errors import UserError
from rl_lightning.strategies import FSDP2Strategy
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


def fit(policy, directory, kind=Breaks, plugins=None, **settings):
    """Four optimizer steps of two microbatches each."""
    module = kind(policy=policy, kl_coef=0.0, optimizer=OptimizerOptions(lr=1e-2, weight_decay=0.1))
    data = StoredRollouts(random_rollout(dtype=torch.float32), group_size=4, minibatch_size=4, microbatch_size=2)
    guard = Weights(**settings)
    run = trainer(directory, [guard], gradient_clip_val=1.0, plugins=plugins)
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
    assert "Optimizer step 2 had a loss or gradient that is not finite" in caplog.text
    assert [path.name for path in tmp_path.glob("not_finite*")] == ["not_finite-step2.pt"]


def test_the_file_reproduces_the_step(tiny_policy, tmp_path):
    fit(tiny_policy, tmp_path)
    kept = tmp_path / "not_finite-step2.pt"
    loss = replay(kept, loaded(Always, tiny_policy))
    assert loss.isnan()
    assert replay(kept, loaded(GRPO, tiny_policy)).isfinite()  # what broke it was the objective, not the data


class BreaksTheLossAlone(Breaks):
    """The loss is not finite, and every gradient is."""

    def loss(self, batch):
        loss = GRPO.loss(self, batch)
        return loss + self.value if self.global_step in self.broken else loss

    objective = GRPO.objective


def test_a_loss_that_is_not_finite_is_enough(tiny_policy, tmp_path):
    run, _, guard = fit(tiny_policy, tmp_path, BreaksTheLossAlone)
    assert torch.equal(guard.weights[0], guard.weights[1]) and not torch.equal(guard.weights[1], guard.weights[2])
    assert run.callback_metrics["guard/skipped_steps"] == 1
    # The loss of the step was written down as it was.
    assert replay(tmp_path / "not_finite-step2.pt", loaded(GRPO, tiny_policy)).isfinite()


def test_in_float16_what_overflows_is_the_scalers_until_it_has_no_scale_left(tiny_policy, tmp_path, monkeypatch):
    """From a scale of 2 on: halved to 1 and to 1/2 by two steps that overflow; only the third such step counts."""
    monkeypatch.setattr(Breaks, "broken", (0, 1, 2))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    run, _, guard = fit(tiny_policy, tmp_path, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    assert run.callback_metrics["guard/skipped_steps"] == 1
    assert torch.equal(guard.weights[0], guard.weights[2]) and not torch.equal(guard.weights[2], guard.weights[3])


def broken_on_the_second_rank(strategy, policy, directory):
    """Take a step that is not finite because of the second rank's rows."""
    rollout = random_rollout(dtype=torch.float32)
    rollout.advantages = rollout.advantages.clone()
    rollout.advantages[-4:] = float("nan")
    data = StoredRollouts(rollout, group_size=4, minibatch_size=16, microbatch_size=4)
    module = GRPO(policy=policy, kl_coef=0.0)
    chosen = FSDP2Strategy() if strategy == "fsdp2" else strategy
    run = trainer(directory, [NonFiniteGuard()], devices=2, strategy=chosen, gradient_clip_val=1.0)
    run.fit(module, datamodule=data)
    return module.finite, float(run.callback_metrics["guard/skipped_steps"])


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_the_file_holds_every_ranks_part(strategy, ranks, tiny_policy, tmp_path):
    said = "had a loss or gradient that is not finite"
    before = [ranks.printed(rank).count(said) for rank in (0, 1)]
    assert ranks(broken_on_the_second_rank, strategy, tiny_policy, tmp_path) == [(False, 1)] * 2
    assert [ranks.printed(rank).count(said) - count for rank, count in enumerate(before)] == [1, 0]
    (kept,) = tmp_path.glob("not_finite*")
    assert replay(kept, loaded(GRPO, tiny_policy)).isnan()
    dump = torch.load(kept, weights_only=True)
    assert [bool(batch["advantages"].isnan().any()) for batch in dump["batches"]] == [False, False, False, True]
    start = loaded(GRPO, tiny_policy).state_dict()
    assert all(torch.equal(dump["state_dict"][name], value) for name, value in start.items())


def test_a_full_disk_does_not_end_a_run_that_could_go_on(tiny_policy, tmp_path, monkeypatch, caplog):
    def full(value, file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    run, _, _ = fit(tiny_policy, tmp_path)
    assert run.global_step == 4
    assert "what it was made of is lost: cannot write" in caplog.text


class Always(Breaks):
    broken = (0,)


def loaded(kind, policy):
    module = kind(policy=policy, kl_coef=0.0)
    module.configure_model()
    return module


def test_too_many_in_a_row_end_the_run_with_one_line(tiny_policy, tmp_path, monkeypatch):
    monkeypatch.setattr(Breaks, "broken", (0, 1, 2, 3))
    with pytest.raises(
        UserError, match="3 optimizer steps in a row had losses or gradients that are not finite"
    ) as error:
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


def warnings_of(callback, caplog, learns_from="rollouts", **series):
    """Let a callback see what rollouts log, and return what it says."""
    module = SimpleNamespace(learns_from=learns_from)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        for number, values in enumerate(zip(*series.values(), strict=True)):
            names = {name.replace("_", "/", 1): value for name, value in zip(series, values, strict=True)}
            trainer = SimpleNamespace(callback_metrics=names, current_epoch=number, is_global_zero=True)
            callback.on_rollout_end(trainer, module, SimpleNamespace(metrics=names))
            callback.on_train_epoch_end(trainer, module)
    return [record.getMessage() for record in caplog.records]


def test_a_collapse_is_said_once(caplog):
    callback = CollapseWarning(entropy_share=0.05, first=2)
    said = warnings_of(callback, caplog, policy_entropy=[1.0, 1.0, 0.06, 0.04, 0.03], rollout_length_mean=[10.0] * 5)
    assert len(said) == 1 and "entropy is 0.04" in said[0] and "(rollout 4; said once)" in said[0]
    again = CollapseWarning(entropy_share=0.05, first=2)
    again.load_state_dict(copy.deepcopy(callback.state_dict()))
    assert warnings_of(again, caplog, policy_entropy=[0.01]) == []


def test_lengths_of_a_table_cannot_run_away(caplog):
    """It is known once, and again in a run that goes on."""
    callback = CollapseWarning(first=1)
    assert warnings_of(callback, caplog, "samples", rollout_length_mean=[10.0, 90.0]) == []
    assert callback.state_dict()["seen"]["rollout/length_mean"] == []


@pytest.mark.parametrize(("length", "warns"), [(29.0, False), (31.0, True), (3.4, False), (3.3, True)])
def test_lengths_may_run_away_in_both_directions(length, warns, caplog):
    said = warnings_of(CollapseWarning(first=2), caplog, rollout_length_mean=[9.0, 11.0, length])
    assert bool(said) == warns


def test_a_run_that_goes_well_is_left_alone(caplog):
    entropy = [1.0, 0.9, 0.7, 0.5, 0.4, 0.3, 0.2, 0.1]
    assert warnings_of(CollapseWarning(entropy_share=0.05), caplog, policy_entropy=entropy) == []
    # By default a low entropy alone is no alarm: a policy that has learnt its task is sure.
    assert warnings_of(CollapseWarning(), caplog, policy_entropy=[*entropy, 0.001]) == []


def watched(rewards, group_size, rollouts, guard=None):
    """Show a guard some rollouts with these rewards; return it."""
    guard = guard or SpreadWarning()
    rollout = random_rollout(groups=len(rewards) // group_size, group_size=group_size)
    rollout.raw_rewards = torch.tensor(rewards, dtype=torch.float64)
    rollout.prompts, rollout.responses = ["2+2="] * len(rewards), ["4"] * len(rewards)
    rollout.answers = ["2+2=<<2+2=4>>4\n#### 4"] * len(rewards)
    zero = SimpleNamespace(is_global_zero=True, current_epoch=0)
    for _ in range(rollouts):
        guard.on_rollout_rewards(zero, SimpleNamespace(), rollout)
        guard.on_rollout_end(zero, SimpleNamespace(learns_from="rollouts"), rollout)
    return guard


@pytest.mark.parametrize(
    ("rewards", "group_size", "said"),
    [
        ([0.0] * 8, 4, True),
        ([0.0] * 4 + [1.0] * 4, 4, True),
        ([0.41 + 1e-9 * i for i in range(8)], 4, True),  # a reward model that scores all text alike
        ([0.0] * 4, 1, True),
        ([0.0] * 7 + [1.0], 4, False),
        ([0.0, 0.0, 0.0, 1.0], 1, False),
        ([float("nan")] * 8, 4, False),
    ],
)
def test_rewards_without_a_spread_are_said_once_with_a_sample(rewards, group_size, said, caplog):
    watched(rewards, group_size, 4)
    assert "equal within every group" not in caplog.text
    watched(rewards, group_size, 12)
    assert caplog.text.count("equal within every group") == said
    if said:
        assert "prompt: '2+2='" in caplog.text
        assert "#### 4" in caplog.text


def test_a_spread_begins_the_count_anew_and_a_resumed_run_goes_on_with_it(caplog):
    guard = watched([0.0] * 8, 4, 4)
    watched([0.0] * 7 + [1.0], 4, 1, guard)
    watched([0.0] * 8, 4, 4, guard)
    assert "equal within every group" not in caplog.text
    resumed = SpreadWarning()
    resumed.load_state_dict(guard.state_dict())
    watched([0.0] * 8, 4, 1, resumed)
    assert "equal within every group" in caplog.text

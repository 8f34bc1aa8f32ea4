"""A run that is told to stop, at whatever moment, saves, exits with its own status, and goes on as if nothing had happened."""

import errno
import os
import signal

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from rl_lightning.algorithms import GRPO, OptimizerOptions
from rl_lightning.callbacks import FirstValidation, GracefulStop, RNGState
from rl_lightning.callbacks.graceful_stop import STOPPED_EARLY
from rl_lightning.data import ChainSum, RolloutDataModule
from rl_lightning.errors import UserError
from rl_lightning.generation import Sampling
from rl_lightning.hooks import RolloutCallback
from tests.checks import cases
from tests.invariants.test_resume import OPTIMIZER, Record, grpo, sft
from tests.support import trainer


class Tell(RolloutCallback):
    """Sends a signal to this very process, once, at some moment of the run's life."""

    def __init__(self, moment, when, number=signal.SIGTERM):
        self.moment, self.when, self.number = moment, when, number
        self.count = 0

    def _at(self, moment):
        if moment == self.moment:
            self.count += 1
            if self.count == self.when:
                os.kill(os.getpid(), self.number)

    def on_train_start(self, trainer, pl_module):
        self._at("set-up")  # before `GracefulStop` listens
        trainer.datamodule.watch.on_progress = lambda done, total: self._at(
            "sampling for validation" if trainer.validating else "sampling"
        )

    def on_rollout_rewards(self, trainer, module, rollout):
        self._at("reward")

    def on_after_backward(self, trainer, pl_module):
        self._at("backward")

    def on_validation_batch_start(self, *_):
        self._at("validation")


class Validations(pl.Callback):
    """Notes the optimizer steps that had been taken at each validation."""

    def __init__(self):
        self.steps = []

    def on_validation_start(self, trainer, pl_module):
        self.steps.append(trainer.global_step)


class SmallTell(Tell):
    """The same for data that are no rollouts, which refuse whatever acts on rollouts."""

    on_rollout_rewards = RolloutCallback.on_rollout_rewards


def episodes(policy):
    """GRPO in an environment: a rollout is sampled in waves of turns."""
    module = GRPO(policy=policy, optimizer=OptimizerOptions(**OPTIMIZER), kl_coef=0.0)
    data = RolloutDataModule(
        prompts=ChainSum(train_size=20, val_size=4), environment={"function": "tests.games.chat", "stop": [";"]}, seed=5,
        sampling=Sampling(max_new_tokens=24, max_turns=5, max_turn_tokens=4), prompts_per_rollout=8, group_size=2,
        minibatch_size=8, microbatch_size=4, reward_limits={"timeout_s": 20.0},
    )  # fmt: skip
    return module, data


ONLINE = (grpo, episodes)


def fit(make, policy, directory, *callbacks, after=(), ckpt_path=None):
    module, data = make(policy)
    record = Record()
    saver = ModelCheckpoint(directory / "checkpoints", save_last=True, every_n_epochs=100)
    run = trainer(
        directory, [RNGState(), record, saver, *callbacks, GracefulStop(), *after], online=make in ONLINE, enable_checkpointing=True,
        max_epochs=2, limit_val_batches=1.0,
    )  # fmt: skip
    try:
        run.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    except SystemExit as stopped:
        return module, record.steps, stopped.code
    return module, record.steps, 0


MOMENTS = [
    (grpo, "set-up", 1), (grpo, "sampling", 1), (grpo, "sampling", 9), (grpo, "reward", 1), (grpo, "reward", 2), (grpo, "backward", 1),
    (grpo, "backward", 2), (grpo, "backward", 11), (grpo, "validation", 1), (grpo, "sampling for validation", 1), (grpo, "sampling for validation", 4),
    (episodes, "sampling", 9), (episodes, "sampling", 1), (episodes, "sampling", 30), (sft, "sampling for validation", 2), (sft, "backward", 3), (sft, "backward", 8),
]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tiny_policy, tmp_path_factory):
    """The module and the steps of a run that nobody has stopped."""
    runs = {}

    def of(make):
        if make not in runs:
            *runs[make], status = fit(make, tiny_policy, tmp_path_factory.mktemp("whole"))
            assert status == 0
        return runs[make]

    return of


#: Each moment once; the other numbers of it, or other data, are slow.
LATER = [MOMENTS[place] for place in (2, 4, 6, 7, 8, 9, 10, 12, 13, 16)]


@pytest.mark.parametrize(
    ("make", "moment", "when"),
    [pytest.param(*case, marks=pytest.mark.slow if case in LATER else ()) for case in MOMENTS],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_stopped_and_resumed_is_uninterrupted(make, moment, when, whole, tiny_policy, tmp_path):
    uninterrupted, expected = whole(make)
    tell = (Tell if make in ONLINE else SmallTell)(moment, when)
    _, before, status = fit(make, tiny_policy, tmp_path / "stopped", tell)
    assert status == STOPPED_EARLY and len(before) < len(expected)
    last = tmp_path / "stopped" / "checkpoints" / "last.ckpt"
    module, after, status = fit(make, tiny_policy, tmp_path / "stopped", ckpt_path=last)
    assert status == 0 and before + after == expected
    for name, value in uninterrupted.state_dict().items():
        assert torch.equal(module.state_dict()[name], value), name


@pytest.mark.parametrize(
    "number",
    cases([signal.SIGTERM, signal.SIGINT, signal.SIGHUP], soon=lambda number: number == signal.SIGINT),
    ids=lambda number: number.name,
)
def test_a_signal_that_was_ignored_stays_ignored(number, whole, tiny_policy, tmp_path):
    """As behind `trap ''` in a shell, under `nohup`, and, of SIGINT, in a background job of a script."""
    _, expected = whole(grpo)
    before = signal.signal(number, signal.SIG_IGN)
    try:
        _, steps, status = fit(grpo, tiny_policy, tmp_path, Tell("reward", 1, number), Tell("backward", 2, number))
        assert (status, steps) == (0, expected) and signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_a_terminal_that_is_closed_stops_a_run_though_nobody_reads_what_it_says(tiny_policy, tmp_path, monkeypatch):
    real = os.write

    def closed(number, text):
        if number == 2:
            raise OSError(errno.EIO, "Input/output error")
        return real(number, text)

    monkeypatch.setattr(os, "write", closed)
    kernel, shell = Tell("backward", 2, signal.SIGHUP), Tell("backward", 2, signal.SIGHUP)
    _, _, status = fit(grpo, tiny_policy, tmp_path, kernel, shell)
    assert status == STOPPED_EARLY and (tmp_path / "checkpoints" / "last.ckpt").exists()


@pytest.mark.parametrize(
    ("make", "moment", "interrupted"),
    [
        (grpo, "sampling for validation", True),
        pytest.param(grpo, "sampling", False, marks=pytest.mark.slow),
        pytest.param(sft, "sampling for validation", True, marks=pytest.mark.slow),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_the_first_validation_changes_no_step_and_is_repeated_if_it_was_interrupted(
    make, moment, interrupted, whole, tiny_policy, tmp_path
):
    uninterrupted, expected = whole(make)
    tell = (Tell if make in ONLINE else SmallTell)(moment, 1)
    looks = Validations()
    _, before, status = fit(make, tiny_policy, tmp_path, looks, tell, after=[FirstValidation()])
    assert (before, looks.steps, status) == ([], [0], STOPPED_EARLY)
    last = tmp_path / "checkpoints" / "last.ckpt"
    looks = Validations()
    module, after, status = fit(make, tiny_policy, tmp_path, looks, after=[FirstValidation()], ckpt_path=last)
    assert status == 0 and after == expected
    assert (looks.steps[0] == 0) == interrupted
    counts = [one.trainer.fit_loop.epoch_progress.current for one in (module, uninterrupted)]
    assert counts[0] == counts[1]
    for name, value in uninterrupted.state_dict().items():
        assert torch.equal(module.state_dict()[name], value), name


def test_other_signals_and_the_end_of_time_do_the_same(tiny_policy, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    for number in (signal.SIGUSR1, signal.SIGINT):
        assert fit(grpo, tiny_policy, tmp_path, Tell("backward", 2, number))[2] == STOPPED_EARLY
    assert signal.getsignal(signal.SIGTERM) == before  # and nobody listens afterwards
    module, data = grpo(tiny_policy)
    run = trainer(tmp_path / "time", [GracefulStop(max_time={"seconds": 0})], max_epochs=3)
    with pytest.raises(SystemExit) as stopped:
        run.fit(module, datamodule=data)
    assert stopped.value.code == STOPPED_EARLY and run.global_step == 0
    assert (tmp_path / "time" / "checkpoints" / "last.ckpt").exists()


def test_who_asks_twice_is_obeyed_at_once(tiny_policy, tmp_path):
    class Twice(pl.Callback):
        def on_after_backward(self, trainer, pl_module):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    module, data = grpo(tiny_policy)
    with pytest.raises(SystemExit) as stopped:
        trainer(tmp_path, [Twice(), GracefulStop()], max_epochs=3).fit(module, datamodule=data)
    assert stopped.value.code == 1
    assert not (tmp_path / "checkpoints").exists()


def test_a_run_hears_ctrl_c_after_one_that_ended_the_run_before_in_its_set_up(tiny_policy, tmp_path, monkeypatch):
    """As in an interpreter, where one fit follows another."""

    def interrupted(*_):
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(RolloutDataModule, "_check_data", interrupted)
        module, data = grpo(tiny_policy)
        trainer(tmp_path / "first", [GracefulStop()], max_epochs=2).fit(module, datamodule=data)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert fit(grpo, tiny_policy, tmp_path / "second", Tell("backward", 2, signal.SIGINT))[2] == STOPPED_EARLY


@pytest.mark.parametrize("limit", ["12:30", "1 hour", "00:00:00:1.5"])
def test_a_time_limit_that_is_none(limit):
    with pytest.raises(UserError, match="must look like 00:12:30:00"):
        GracefulStop(limit)

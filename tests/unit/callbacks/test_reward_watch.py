"""RewardWatch on scripted numbers: what it complains of, when, and what it refuses."""

import logging
import math
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn

from rl_lightning.callbacks import HeldOutDivergence, RewardWatch
from rl_lightning.callbacks.reward_watch import Smoothed
from rl_lightning.errors import UserError
from tests.checks import holds_only_for

REWARDS = {"gold": 0.0, "proxy": 1.0, "form": 0.0}


def scripted(callbacks=(), rewards=REWARDS, directory=None):
    """A Trainer that only has what the callback reads."""
    bound = [SimpleNamespace(name=name, weight=weight) for name, weight in rewards.items()]
    savers = [ModelCheckpoint(directory)] if directory else []
    return SimpleNamespace(
        callbacks=list(callbacks),
        checkpoint_callbacks=savers,
        datamodule=SimpleNamespace(rewarder=SimpleNamespace(rewards=bound) if rewards else None),
        limit_val_batches=1.0,
        state=SimpleNamespace(fn=TrainerFn.FITTING),
        sanity_checking=False,
        callback_metrics={},
        loggers=[],
        global_step=0,
        is_global_zero=True,
        should_stop=False,
    )


def looks(watch, trainer, **columns):
    """Let a watch look at columns of numbers, one look every ten steps; return the looks after which it had complained."""
    names = {"gold": "val/reward/gold", "form": "val/reward/form", "reward": "val/reward_mean", "kl": "val/kl"}
    complained = []
    for number, values in enumerate(zip(*columns.values(), strict=True)):
        trainer.callback_metrics = {
            names[name]: torch.tensor(value) for name, value in zip(columns, values, strict=True)
        }
        trainer.global_step = 10 * number
        before = len(watch._state.said)
        watch.on_validation_end(trainer, None)
        complained += [number] * (len(watch._state.said) - before)
    return complained


RISING = [0.1 * step for step in range(12)]
#: With smoothing 1/2 the averages are .4 .5 .55 .575 .4375 .36875 .334375 ...: more than .1 below .575 from look 4 on.
GOLD = [0.4, 0.6, 0.6, 0.6, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3]


class Unsmoothed(RewardWatch):
    """Compares single looks."""

    def __init__(self, **options):
        super().__init__(**options | {"smoothing": 1.0})


class Impatient(RewardWatch):
    """Complains at the first look."""

    def __init__(self, **options):
        super().__init__(**options | {"patience": 1})


@holds_only_for(RewardWatch, unsmoothed=Unsmoothed, impatient=Impatient)
def test_it_complains_once_at_the_computed_look(kind):
    watch = kind(verifier="gold", smoothing=0.5, drop=0.2)
    # .575 − .36875 > .2 at look 5, and at look 6: two in a row.
    assert looks(watch, scripted(), gold=GOLD, reward=RISING) == [6]


@pytest.mark.parametrize(
    ("gold", "reward"),
    [(RISING, RISING), (GOLD, RISING[::-1]), ([0.5] * 12, RISING), ([0.9, 0.1, 0.1] + [0.1] * 9, [1.0] * 12)],
    ids=["both rise", "both fall", "nothing", "early noise, and the reward does not rise"],
)
def test_it_says_nothing_of_a_run_without_a_fall_behind_the_reward(gold, reward):
    assert looks(RewardWatch(verifier="gold"), scripted(), gold=gold, reward=reward) == []


def test_the_complaint_says_what_fell_since_when_and_which_checkpoint_was_best(tmp_path, caplog):
    for step in (0, 20, 70):
        torch.save({"global_step": step}, tmp_path / f"rollout-{step}.ckpt")
    watch = RewardWatch(verifier="gold", smoothing=0.5)
    with caplog.at_level(logging.WARNING):
        looks(watch, scripted(directory=tmp_path), gold=GOLD, reward=RISING)
    (said,) = caplog.messages
    assert "gold has fallen from 0.575 at step 30 to 0.369" in said
    assert "rose from 0.1 to" in said
    assert f"the nearest checkpoint is {tmp_path / 'rollout-20.ckpt'} of step 20" in said


def test_it_stops_the_run_if_asked_to():
    for action in ("warn", "stop"):
        trainer = scripted()
        looks(RewardWatch(verifier="gold", action=action), trainer, gold=GOLD, reward=RISING)
        assert trainer.should_stop == (action == "stop")


def test_resumed_at_any_look_it_complains_at_the_same(tmp_path):
    for stop in range(1, 9):
        first = RewardWatch(verifier="gold", smoothing=0.5, drop=0.2)
        before = looks(first, scripted(), gold=GOLD[:stop], reward=RISING[:stop])
        torch.save(first.state_dict(), tmp_path / "state.pt")
        second = RewardWatch(verifier="gold", smoothing=0.5, drop=0.2)
        second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        after = looks(second, scripted(), gold=GOLD[stop:], reward=RISING[stop:])
        assert before + [stop + look for look in after] == [6]


def test_responses_that_pass_the_format_and_are_wrong():
    form, gold = [0.5 + 0.05 * step for step in range(12)], [0.5] * 12
    watch = RewardWatch(verifier="gold", format="form", smoothing=1.0)
    # The gap began at the mean of 0, .05 and .1: it is more than .1 above that from look 4 on.
    assert looks(watch, scripted(), gold=gold, form=form, reward=RISING) == [5]


def test_a_budget_of_divergence():
    watch = RewardWatch(verifier="gold", kl_budget=5.0, smoothing=1.0)
    kl = [0.0, 9.0, 9.0, 1.0, 6.0, 1.0, 6.0, 6.0, 6.0, 6.0, 6.0, 6.0]
    assert looks(watch, scripted(), gold=RISING, reward=RISING, kl=kl) == [7]


def test_where_nothing_happens_it_hardly_ever_complains():
    """200 runs of 100 looks at a verifier with noise of 0.03, a reward that rises."""
    noise = 0.5 + 0.03 * torch.randn(200, 100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rising = [float(step) for step in range(100)]

    def share(runs, **options):
        said = [looks(RewardWatch("gold", **options), scripted(), gold=run, reward=rising) for run in runs]
        return sum(map(bool, said)) / len(runs)

    logging.disable(logging.WARNING)
    try:
        runs = noise.tolist()
        assert share(runs) < 0.02
        assert share(runs[:100], drop=0.03) > 0.2  # a lower threshold would be noticed
    finally:
        logging.disable(logging.NOTSET)


def test_the_only_reward_at_weight_0_is_the_verifier():
    watch = RewardWatch()
    watch.setup(scripted(rewards={"gold": 0.0, "proxy": 1.0}), None, "fit")
    assert watch.verifier == "gold"


@pytest.mark.parametrize(
    ("options", "rewards", "message"),
    [
        ({}, REWARDS, "2 of the rewards (gold, proxy, form) can be it: name one of them as `verifier`"),
        ({}, {"proxy": 1.0}, "none of the rewards (proxy) can be it: list one that knows the truth at `weight: 0`"),
        ({}, {}, "none of the rewards (none) can be it"),
        ({"verifier": "proxy"}, REWARDS, "'proxy' has weight 1, so it is trained on"),
        ({"verifier": "gould"}, REWARDS, "there is no reward 'gould'; there are gold, proxy, form"),
        ({"verifier": "gold", "format": "proxy"}, REWARDS, "'proxy' has weight 1"),
        ({"verifier": "gold", "format": "gold"}, REWARDS, "format and verifier are the same reward, 'gold'"),
        ({"verifier": "gold", "kl_budget": 1.0}, REWARDS, "add the callback rl_lightning.callbacks.HeldOutDivergence"),
    ],
)  # fmt: skip
def test_a_watch_that_cannot_see_is_refused(options, rewards, message):
    with pytest.raises(UserError) as refusal:
        RewardWatch(**options).setup(scripted(rewards=rewards), None, "fit")
    assert message in str(refusal.value)


def test_it_needs_validations_and_values_in_range():
    trainer = scripted()
    trainer.limit_val_batches = 0
    with pytest.raises(UserError, match="this run has none"):
        RewardWatch("gold").setup(trainer, None, "fit")
    trainer = scripted([RewardWatch(), RewardWatch(action="stop")])
    with pytest.raises(UserError, match="RewardWatch stands there twice"):
        RewardWatch("gold").setup(trainer, None, "fit")
    trainer = scripted()
    trainer.datamodule.source = SimpleNamespace(has=lambda split: split == "train")
    with pytest.raises(UserError, match="and the data have none"):
        RewardWatch("gold").setup(trainer, None, "fit")
    for options in (
        {"drop": math.nan},
        {"kl_budget": math.nan},
        {"drop": 0},
        {"patience": 0},
        {"smoothing": 0},
        {"kl_budget": -1.0},
    ):
        with pytest.raises(UserError, match="RewardWatch needs drop above 0"):
            RewardWatch(**options)
    RewardWatch("gold", kl_budget=1.0).setup(scripted([HeldOutDivergence()]), None, "fit")


def test_a_validation_in_which_the_verifier_failed_is_no_look(caplog):
    """Lightning still has the number of the validation before."""
    watch, trainer = RewardWatch("gold"), scripted()
    trainer.callback_metrics = {name: torch.tensor(0.5) for name in ("val/reward/gold", "val/reward_mean", "val/kl")}
    watch.on_validation_end(trainer, SimpleNamespace(evaluated=dict.fromkeys(["val/reward/gold", "val/reward_mean"])))
    watch.on_validation_end(trainer, SimpleNamespace(evaluated=dict.fromkeys(["val/reward_mean"])))
    assert {name: level.looks for name, level in watch._state.levels.items()} == {"verifier": 1, "reward": 1, "kl": 1}
    assert "this validation is no look: gold, the verifier, failed on every response" in caplog.text


def test_an_average_keeps_its_best_and_its_beginning():
    level = Smoothed(0.5)
    for step, value in enumerate([1.0, 2.0, 6.0, 0.0]):
        level.look(value, step)
    assert (level.began, level.level, level.best, level.best_step) == (3.0, 1.875, 3.75, 2)

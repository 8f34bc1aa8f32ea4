"""Rewards as people write them become specifications, or one line says what is wrong."""

import functools

import pytest
from rewards_for_tests import Longer

from rl_lightning.data import RolloutDataModule
from rl_lightning.errors import UserError
from rl_lightning.options import plain_options
from rl_lightning.rewards import BatchReward, Rewarder, RewardSpec, as_rewards

PATH = "rl_lightning.rewards.functions.response_length"
SPEC = RewardSpec(PATH, weight=2.0)
MODEL = BatchReward("judge", 1.0, len)


def short(response, limit=3):
    return float(len(response) < limit)


GIVEN = [
    (None, []),
    ([], []),
    (PATH, [RewardSpec(PATH)]),
    (short, [RewardSpec(short)]),
    ((short, PATH), [RewardSpec(short), RewardSpec(PATH)]),
    ([{"function": PATH, "weight": 0.5, "name": "length"}], [RewardSpec(PATH, 0.5, "length")]),
    ({"model": "a/b", "weight": 0.1}, [RewardSpec(model="a/b", weight=0.1)]),
    (
        {"function": short, "arguments": {"limit": 5}, "batched": True},
        [RewardSpec(short, arguments={"limit": 5}, batched=True)],
    ),
    ([SPEC, MODEL], [SPEC, MODEL]),
    (MODEL, [MODEL]),
]


@pytest.mark.parametrize(("given", "expected"), GIVEN)
def test_every_way_to_give_a_reward(given, expected):
    assert as_rewards(given) == expected


@pytest.mark.parametrize("function", [lambda response: 1.0, functools.partial(short, limit=1), Longer(2), "".join])
def test_whatever_can_be_called_is_a_function(function):
    (spec,) = as_rewards(function)
    assert spec.function is function and spec.weight == 1.0


MISTAKES = [
    (3, "rewards is 3, which is no reward: give a function, its dotted path"),
    ([PATH, 0.5], "rewards[1] is 0.5, which is no reward"),
    ([Longer], "rewards[0] is the class Longer, not a function: give an object of it, Longer(...)"),
    ([{"function": PATH, "wieght": 2}], "rewards[0]: a reward has no option 'wieght'; did you mean 'weight'?"),
    ({"x": 2}, "rewards: a reward has no option 'x'; it takes function, weight"),
    ({}, "not neither"),
    ({"model": "a", "batched": True}, "batched and concurrency are settings of functions"),
    ({"function": PATH, "concurrency": 0}, "concurrency of a reward must be at least 1, not 0"),
]


@pytest.mark.parametrize(("given", "message"), MISTAKES, ids=[message for _, message in MISTAKES])
def test_what_is_no_reward_is_one_line(given, message):
    with pytest.raises(UserError) as caught:
        as_rewards(given)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("given", [given for given, _ in GIVEN if given and "a/b" not in str(given)])
def test_a_datamodule_takes_them_all(given):
    named = [reward.name for reward in RolloutDataModule(rewards=given).rewarder.rewards]
    assert named == [reward.name for reward in Rewarder(as_rewards(given)).rewards]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (3, "rewards"),
        ([{"function": short, "wieght": 2}], "a reward has no option 'wieght'; did you mean 'weight'"),
        ([{"function": PATH, "weight": "x"}], "rewards[0]: weight of a reward cannot be 'x'"),
        ([short, 0.5], "rewards[1] is 0.5, which is no reward"),
        (object(), "which is no reward"),
    ],
)
def test_a_datamodule_refuses_the_rest_in_one_line(given, message):
    with pytest.raises(UserError) as caught:
        RolloutDataModule(rewards=given)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_what_a_datamodule_was_made_with_can_be_written_down():
    written = plain_options(RolloutDataModule(rewards={"function": PATH, "weight": 0.5}))["rewards"]
    assert as_rewards(written) == [RewardSpec(PATH, 0.5)]
    assert "rewards" not in plain_options(RolloutDataModule(rewards=short)), "no file holds a function"

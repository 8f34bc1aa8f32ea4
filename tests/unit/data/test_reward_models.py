"""Reward models listed among the rewards."""

import logging
import pickle

import pytest
import torch

from rl_lightning.algorithms import GRPO, RewardModel
from rl_lightning.data import ChainSum, RolloutDataModule
from rl_lightning.data.cache import rewards_key
from rl_lightning.data.reward_models import ModelReward, with_models
from rl_lightning.errors import UserError
from rl_lightning.generation import Sampling
from rl_lightning.hooks import RolloutCallback
from rl_lightning.models import ClassifierFiles, Judge, Text
from rl_lightning.rewards import BatchReward, Rewarder, RewardSample, RewardSpec, tally
from tests.support import trainer

LENGTH = RewardSpec("rl_lightning.rewards.functions.response_length", weight=0.0)


@pytest.fixture
def exported(tiny_policy, tmp_path):
    """A directory with an untrained reward model."""
    module = RewardModel(policy=tiny_policy)
    module.configure_model()
    for part in module.hf_parts():
        part.save_pretrained(tmp_path / "reward_model")
    return str(tmp_path / "reward_model")


class Watch(RolloutCallback):
    def __init__(self):
        self.rollouts = []

    def on_rollout_end(self, trainer, module, rollout):
        self.rollouts.append(rollout)


def run(policy, directory, rewards, **limits):
    data = RolloutDataModule(
        prompts=ChainSum(train_size=16, val_size=4), sampling=Sampling(max_new_tokens=9), rewards=rewards, seed=1,
        prompts_per_rollout=4, group_size=4,
    )  # fmt: skip
    watch = Watch()
    trainer(directory, [watch], max_epochs=1, **limits).fit(GRPO(policy=policy, kl_coef=0.0), datamodule=data)
    return data, watch.rollouts[0]


def test_a_rollout_is_scored_by_the_model_and_judged_by_the_first_reward(tiny_policy, exported, tmp_path):
    data, rollout = run(tiny_policy, tmp_path, [LENGTH, RewardSpec(model=exported, weight=0.5)])
    texts = [
        Text(prompt, response, not cut)
        for prompt, response, cut in zip(rollout.prompts, rollout.responses, rollout.truncated.tolist(), strict=True)
    ]
    expected = torch.tensor(Judge(ClassifierFiles(exported)).score(texts, "cpu")[0])
    assert torch.allclose(rollout.reward_components["reward_model"], expected, rtol=1e-5)
    assert torch.allclose(rollout.raw_rewards, 0.5 * expected, rtol=1e-5)
    assert torch.equal(rollout.correct, rollout.reward_components["response_length"] >= 0.5)
    assert len(set(rollout.truncated.tolist())) == 2, "both kinds of endings are wanted here"
    assert "reward_model × 0.5" in data.describe()["rewards"]
    assert data.rewards.models[0]._judge is None, "weights stay after the run"


def test_a_model_that_is_not_there_is_found_out_before_anything_is_sampled(tiny_policy, tmp_path):
    with pytest.raises(UserError, match="reward model: there is no directory"):
        run(tiny_policy, tmp_path, [RewardSpec(model=str(tmp_path / "nowhere"))])
    with pytest.raises(UserError, match="not a sequence classifier"):
        run(tiny_policy, tmp_path, [RewardSpec(model=tiny_policy)])


def test_nothing_is_read_when_the_data_are_only_described(tmp_path):
    RolloutDataModule(rewards=[RewardSpec(model=str(tmp_path / "nowhere"))])


def test_names_and_order():
    rewards, models = with_models([RewardSpec(model="a/b"), LENGTH, RewardSpec(model="c", name="kind", weight=3.0)])
    assert [type(reward) for reward in rewards] == [BatchReward, RewardSpec, BatchReward]
    assert [rewards[0].name, rewards[2].name, rewards[2].weight] == ["reward_model", "kind", 3.0]
    assert [model.spec.model for model in models] == ["a/b", "c"]


def test_the_arguments_tell_one_table_of_scores_from_another():
    keys = [
        rewards_key(Rewarder(with_models([RewardSpec(model="a", arguments={"label": label})])[0]))
        for label in ("good", "bad")
    ]
    assert keys[0] != keys[1]


def test_an_argument_that_no_model_takes_is_refused():
    with pytest.raises(UserError, match="has no argument 'lable': it takes label, batch_size"):
        ModelReward(RewardSpec(model="a", arguments={"lable": "good"}))


def test_the_arguments_reach_the_judge(exported):
    reward = ModelReward(RewardSpec(model=exported, arguments={"batch_size": 3}))
    assert reward.prepare("cpu").batch_size == 3
    with pytest.raises(UserError, match="has one label"):
        ModelReward(RewardSpec(model=exported, arguments={"label": "LABEL_0"})).prepare("cpu")


def test_weights_are_not_pickled(exported):
    reward = ModelReward(RewardSpec(model=exported))
    sample = [RewardSample("1+2=", "3", None, {"truncated": False})]
    before = reward(sample)
    sent = pickle.dumps(reward)
    assert len(sent) < 2000
    assert pickle.loads(sent)(sample) == before


def test_texts_that_had_to_be_cut_are_counted_and_told_of_once(exported, caplog):
    reward = ModelReward(RewardSpec(model=exported))
    long = RewardSample("1+" * 40 + "1=", "3", None, {"truncated": False})
    tally.drain()
    with caplog.at_level(logging.WARNING):
        reward([long, long, RewardSample("1+2=", "3", None, {"truncated": False})])
        reward([long])
    assert tally.drain().counts == {"text_cut": 3}
    assert caplog.text.count("2 of 3 texts are longer than its 64 tokens") == 1 == caplog.text.count("are longer than")


def test_a_key_takes_arguments_that_are_too_long_for_the_name_of_a_file(tmp_path):
    """Such as the instructions of a judge; a file that one names is in the key, by its size and time."""

    def key(pattern):
        reward = RewardSpec("rl_lightning.rewards.functions.matches_pattern", arguments={"pattern": pattern})
        return rewards_key(Rewarder([reward]))

    assert key("1" * 5000) != key("1" * 5001)
    file = tmp_path / "file"
    before = key(str(file))
    file.write_text("1")
    assert key(str(file)) != before

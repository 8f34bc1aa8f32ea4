"""A run that goes on must be the run that was stopped."""

from dataclasses import replace

import pytest

from rl_lightning.algorithms import GRPO, SFT
from rl_lightning.data import ChainSum, DemonstrationDataModule, RolloutDataModule
from rl_lightning.data.record import _plain, digest, refuse_changes
from rl_lightning.errors import UserError
from rl_lightning.generation import Sampling
from rl_lightning.rewards import RewardSpec
from tests.support import trainer
from tests.tiny import tiny_model, tiny_tokenizer

REWARDS = [RewardSpec("rl_lightning.rewards.functions.response_length")]


def grpo(policy, directory, ckpt_path=None, prompts=None, temperature=1.0, algorithm=GRPO, **sizes):
    sizes = {"prompts_per_rollout": 4, "group_size": 2, "minibatch_size": 4, "seed": 1} | sizes
    data = RolloutDataModule(
        prompts=prompts or ChainSum(train_size=16, val_size=4), sampling=Sampling(max_new_tokens=4, temperature=temperature),
        rewards=REWARDS, **sizes,
    )  # fmt: skip
    run = trainer(directory, max_epochs=2 if ckpt_path else 1)
    run.fit(algorithm(policy=policy), datamodule=data, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
    return run


@pytest.fixture(scope="module")
def checkpoint(tiny_policy, tmp_path_factory):
    place = tmp_path_factory.mktemp("one")
    grpo(tiny_policy, place).save_checkpoint(place / "one.ckpt")
    return place / "one.ckpt"


class OtherGRPO(GRPO):
    """Another objective."""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"group_size": 4}, r"data\.init_args\.group_size was 2 and is 4"),
        ({"prompts_per_rollout": 8}, r"data\.init_args\.prompts_per_rollout was 4 and is 8"),
        ({"minibatch_size": 8}, r"data\.init_args\.minibatch_size was 4 and is 8"),
        ({"epochs_per_rollout": 2}, r"data\.init_args\.epochs_per_rollout was 1 and is 2"),
        ({"seed": 2}, r"data\.init_args\.seed was 1 and is 2"),
        ({"prompts": ChainSum(train_size=17, val_size=4)}, r"the training prompts or their answers .* changed"),
        ({"algorithm": OtherGRPO}, r"model\.class_path was GRPO and is OtherGRPO"),
        ({"seed": 2, "group_size": 4}, r"seed was 1 and is 2; .*group_size was 2 and is 4"),
    ],
)
def test_a_changed_run_is_refused_by_name(change, said, checkpoint, tiny_policy, tmp_path):
    with pytest.raises(UserError, match=said):
        grpo(tiny_policy, tmp_path, checkpoint, **change)


class OtherColumns(ChainSum):
    """The same prompts and answers, and another number for rewards to read."""

    default_reward = None

    def load(self, split):
        return [replace(one, metadata={"terms": 1 + one.metadata["terms"]}) for one in super().load(split)]


class OtherCaps(ChainSum):
    """The same prompts and answers, and caps of their own."""

    default_reward = None

    def load(self, split):
        return [replace(one, max_new_tokens=3) for one in super().load(split)]


@pytest.mark.parametrize("kind", [OtherColumns, OtherCaps])
def test_other_columns_for_rewards_and_other_caps_are_refused(kind, checkpoint, tiny_policy, tmp_path):
    with pytest.raises(UserError, match=r"what rewards read of the training rows besides .* changed"):
        grpo(tiny_policy, tmp_path, checkpoint, prompts=kind(train_size=16, val_size=4))


def test_objects_in_a_row_are_not_told_apart_by_where_they_lie():
    assert _plain({"a": [object(), 1]}) == _plain({"a": [object(), 1]}) != _plain({"a": [object(), 2]})
    assert repr(_plain({"a": {"b": (1.5, None, "c", object())}})) == "[('a', [('b', [1.5, None, 'c', 'object'])])]"


def test_another_tokenizer_is_refused(checkpoint, tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'] }}="
    tiny_model().save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="the tokenizer changed"):
        grpo(str(tmp_path / "other"), tmp_path, checkpoint)


def test_what_may_change_may(checkpoint, tiny_policy, tmp_path):
    run = grpo(tiny_policy, tmp_path, checkpoint, temperature=0.7, microbatch_size=2)
    assert run.global_step == 4


def test_other_demonstrations_are_refused(tiny_policy, tmp_path):
    def sft(slips, ckpt_path=None):
        prompts = ChainSum(train_size=16, val_size=4, slip=slips)
        data = DemonstrationDataModule(prompts=prompts, batch_size=8, seed=1)
        run = trainer(tmp_path, online=False, max_epochs=2 if ckpt_path else 1)
        run.fit(SFT(tiny_policy), datamodule=data, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
        return run

    sft(0.0).save_checkpoint(tmp_path / "sft.ckpt")
    sft(0.0, tmp_path / "sft.ckpt")
    with pytest.raises(UserError, match="what the demonstrations are made of changed"):
        sft(0.9, tmp_path / "sft.ckpt")


def test_what_a_checkpoint_does_not_know_is_not_compared():
    refuse_changes({"a": 1}, {"a": 1, "b": 2})
    with pytest.raises(UserError, match="a was 1 and is 2"):
        refuse_changes({"a": 1}, {"a": 2, "b": 2})


def test_a_digest_is_of_the_content():
    assert digest([[1, 2], "x"]) == digest([[1, 2], "x"]) != digest([[1, 2], "y"])
    assert digest(["\ud800"]) != digest([""])

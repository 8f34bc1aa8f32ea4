"""Rewards are computed while other responses are still being sampled, and it changes nothing."""

import threading
import time

import pytest
import torch

from rl_lightning.algorithms import GRPO
from rl_lightning.data import ChainSum, RolloutDataModule
from rl_lightning.generation import NativeGenerator, Sampling
from rl_lightning.rewards import RewardLimits, RewardSpec
from tests.support import trainer


class Order(NativeGenerator):
    """Notes what happens when; waits for a first reward before it samples on."""

    def __init__(self, file=None):
        super().__init__()
        self.file, self.begun_after = file, None

    def generate(self, model, request, progress=None, finished=None):
        ended = 0

        def note(number, ids):
            nonlocal ended
            ended += 1
            if finished is not None:
                finished(number, ids)
            if self.file is not None and ended == 1:
                for _ in range(500):
                    if self.file.exists():
                        break
                    time.sleep(0.02)
                self.begun_after = ended if self.file.exists() else None

        return super().generate(model, request, progress, note)


class Late(NativeGenerator):
    """Says of no response when it ends."""

    def generate(self, model, request, progress=None, finished=None):
        return super().generate(model, request, progress)


def prompts_and(generator, reward, **options):
    return RolloutDataModule(
        prompts=ChainSum(train_size=8, val_size=4), prompts_per_rollout=4, group_size=4, generator=generator,
        sampling=Sampling(max_new_tokens=8), rewards=[reward], seed=5, **options,
    )  # fmt: skip


def rollout(policy, tmp_path, generator, reward):
    data = prompts_and(generator, reward)
    module = GRPO(policy=policy, kl_coef=0.0)
    collected = []
    make = data.make_collector

    def watched():
        collector = make()
        collect = collector.collect
        collector.collect = lambda number: collected.append(collect(number)) or collected[-1]
        return collector

    data.make_collector = watched
    trainer(tmp_path, max_epochs=1).fit(module, datamodule=data)
    return collected[0]


def test_the_first_reward_begins_before_the_second_response_has_ended(tiny_policy, tmp_path):
    generator = Order(tmp_path / "begun")
    reward = RewardSpec("tests.rewards_light.touch", arguments={"file": str(generator.file)})
    rollout(tiny_policy, tmp_path, generator, reward)
    assert generator.begun_after == 1


@pytest.mark.parametrize("reward", ["response_length", "answer_correct"])
def test_rewards_are_those_of_the_end(tiny_policy, tmp_path, reward):
    spec = RewardSpec(f"rl_lightning.rewards.functions.{reward}")
    early, late = (rollout(tiny_policy, tmp_path, made(), spec) for made in (NativeGenerator, Late))
    assert early.responses == late.responses
    for name in ("rewards", "raw_rewards", "correct", "response_mask", "advantages"):
        assert torch.equal(getattr(early, name), getattr(late, name)), name


class Broken(NativeGenerator):
    """Fails once a reward has begun."""

    def __init__(self, file):
        super().__init__()
        self.file = file

    def generate(self, model, request, progress=None, finished=None):
        def fail(done, total):
            while done and not self.file.exists():
                time.sleep(0.02)
            if done:
                raise RuntimeError("the sampler broke")

        return super().generate(model, request, fail, finished)


def test_rewards_end_with_a_generation_that_fails(tiny_policy, tmp_path, caplog):
    file = tmp_path / "begun"
    reward = RewardSpec("tests.rewards_light.touch", arguments={"file": str(file), "seconds": 60.0})
    data = prompts_and(Broken(file), reward, reward_limits=RewardLimits(timeout_s=100))
    with pytest.raises(RuntimeError, match="the sampler broke"):
        trainer(tmp_path).fit(GRPO(policy=tiny_policy, kl_coef=0.0), datamodule=data)
    for thread in [thread for thread in threading.enumerate() if thread.name == "rewards"]:
        thread.join(20)
        assert not thread.is_alive()
    assert not [record for record in caplog.records if record.name == "concurrent.futures"]

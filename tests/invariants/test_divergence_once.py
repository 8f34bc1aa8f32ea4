"""A divergence in the reward is taken off once, and what is logged of rewards is what was rewarded."""

import pytest
import torch

from rl_lightning.algorithms import DAPO, GRPO, PPO
from rl_lightning.callbacks import GroupNormalize
from rl_lightning.data import ChainSum, RolloutDataModule
from rl_lightning.functional import gae, group_normalize
from rl_lightning.generation import Sampling
from rl_lightning.hooks import RolloutCallback
from rl_lightning.models import LoadOptions
from rl_lightning.rewards import RewardSpec
from tests.checks import assert_same, cases
from tests.invariants.dynamic import KeepAll
from tests.support import trainer
from tests.tiny import save_tiny_policy, tiny_model, tiny_tokenizer

BETA = 0.5


class TokenAdvantages(RolloutCallback):
    """The reward to go of every token, less that of its response to the same prompt: token-level advantages."""

    supplies = ("advantages",)

    def on_rollout_advantages(self, trainer, module, rollout):
        rollout.advantages = module.token_rewards(rollout).flip(1).cumsum(1).flip(1)


class TakenOffTwice(TokenAdvantages):
    """What happened when the rewards had lost the divergence before a callback asked for them token by token."""

    def on_rollout_advantages(self, trainer, module, rollout):
        if rollout.kl_penalties is not None:
            rollout.rewards = rollout.penalised_rewards
        super().on_rollout_advantages(trainer, module, rollout)


class Watch(RolloutCallback):
    def on_rollout_end(self, trainer, module, rollout):
        self.rollout = rollout


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    """A policy and a reference that is another one."""
    directory = tmp_path_factory.mktemp("policies")
    policy, reference = save_tiny_policy(directory / "policy"), tiny_model()
    torch.nn.init.normal_(reference.lm_head.weight, std=0.3)
    reference.save_pretrained(directory / "reference")
    tiny_tokenizer().save_pretrained(directory / "reference")
    return {"policy": policy, "reference": str(directory / "reference")}


def rollout_of(algorithm, policies, directory, kl_in, dynamic, advantages):
    """Return the finished rollout of one epoch."""
    data = RolloutDataModule(
        prompts=ChainSum(train_size=32, val_size=4), sampling=Sampling(max_new_tokens=6), seed=1, prompts_per_rollout=4,
        group_size=4, rewards=[RewardSpec("rl_lightning.rewards.functions.response_length")],
    )  # fmt: skip
    module = algorithm(**policies, load=LoadOptions(dtype="float64"), kl_coef=BETA, kl_in=kl_in)
    watch = Watch()
    callbacks = [watch, *advantages, *([KeepAll()] if dynamic else [])]
    trainer(directory, callbacks, online=False).fit(module, datamodule=data)
    return module, watch.rollout


@pytest.mark.parametrize(
    ("algorithm", "kl_in", "dynamic"),
    cases(
        [PPO, GRPO, DAPO],
        ["loss", "reward"],
        [False, True],
        soon=lambda algorithm, kl_in, dynamic: (
            (algorithm is PPO and not dynamic) or (algorithm is GRPO and (kl_in == "reward") == dynamic)
        ),
    ),
)
def test_rewards_are_what_was_rewarded_and_advantages_have_the_divergence_once(
    algorithm, kl_in, dynamic, policies, tmp_path
):
    makers = [None] if algorithm is PPO else [GroupNormalize(), TokenAdvantages()]
    for callback in [*makers, *([TakenOffTwice()] if algorithm is GRPO and kl_in == "reward" else [])]:
        needed = [] if callback is None else [callback]
        _, rollout = rollout_of(algorithm, policies, tmp_path, kl_in, dynamic, needed)
        rewarded = rollout.raw_rewards.double()
        mask, lengths = rollout.response_mask, rollout.lengths
        u = torch.zeros(mask.shape, dtype=torch.float64)
        if kl_in == "reward":
            u = torch.where(mask, rollout.old_logprobs - rollout.ref_logprobs, 0)
            assert float(u.abs().sum()) > 1
        per_token = -BETA * u
        per_token[torch.arange(len(rollout)), lengths - 1] += rewarded
        if algorithm is PPO:
            expected, _ = gae(per_token, rollout.values, mask)
        elif isinstance(callback, GroupNormalize):
            # Rewards are float32; so is what is taken off them here.
            expected = group_normalize(rewarded - BETA * u.sum(1), rollout.group_ids)[:, None] * mask
        else:
            expected = per_token.flip(1).cumsum(1).flip(1)
        if isinstance(callback, TakenOffTwice):
            with pytest.raises(AssertionError):
                assert_same(rollout.advantages.double() * mask, expected * mask, relative=1e-3)
            continue
        assert_same(rollout.advantages.double() * mask, expected * mask, relative=1e-5)
        assert torch.equal(rollout.rewards, rollout.raw_rewards)
        assert rollout.metrics["rollout/reward_mean"] == pytest.approx(float(rewarded.mean()), rel=1e-6)
        assert rollout.metrics["rollout/reward_std"] == pytest.approx(float(rewarded.std()), rel=1e-5)

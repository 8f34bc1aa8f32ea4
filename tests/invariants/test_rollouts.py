"""What holds for every rollout: the first ratio, failed rewards, several epochs."""

import lightning.pytorch as pl
import pytest
import torch

from rl_lightning.algorithms import GRPO, OptimizerOptions
from rl_lightning.data import ChainSum, RolloutDataModule
from rl_lightning.errors import UserError
from rl_lightning.generation import Sampling
from rl_lightning.hooks import RolloutCallback
from rl_lightning.models import loading
from rl_lightning.rewards import RewardLimits, RewardSpec
from tests.checks import cases
from tests.shrunk import save_small
from tests.support import trainer


class Watch(RolloutCallback):
    """Keeps the rollouts, and the ratios and weights of every microbatch."""

    def __init__(self):
        self.rollouts, self.ratios, self.batches = [], [], []

    def on_rollout_end(self, trainer, module, rollout):
        self.rollouts.append(rollout)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module, outputs, batch, batch_idx):
        self.ratios.append(pl_module.observations.latest["policy/ratio_mean"].clone())
        self.batches.append(batch)


def run(policy, directory, function="rl_lightning.rewards.functions.response_length", limits=None, lr=1e-2, **options):
    data = RolloutDataModule(
        prompts=ChainSum(train_size=32, val_size=4), sampling=Sampling(max_new_tokens=9), seed=1, prompts_per_rollout=8,
        group_size=4, epochs_per_rollout=2, minibatch_size=16, microbatch_size=8,
        rewards=[RewardSpec(function)], reward_limits=limits,
    )  # fmt: skip
    watch = Watch()
    module = GRPO(policy=policy, optimizer=OptimizerOptions(lr=lr), kl_coef=0.04)
    trainer(directory, [watch], max_epochs=2, **options).fit(module, datamodule=data)
    return watch


@pytest.mark.parametrize(
    "precision", cases(["32-true", "bf16-mixed", "bf16-true"], soon=lambda one: one != "bf16-true")
)
def test_the_first_minibatch_of_a_rollout_has_ratio_one_exactly(precision, tiny_policy, tmp_path):
    """Two rollouts of 2 epochs × 2 minibatches × 2 microbatches; the second minibatch and the second epoch are off policy."""
    watch = run(tiny_policy, tmp_path, precision=precision)
    assert len(watch.ratios) == 16
    for number, ratios in enumerate(watch.ratios):
        assert bool((ratios == 1).all()) == (number % 8 < 2), number


@pytest.mark.slow  # `tests/unit/models/test_noise.py` without runs
@pytest.mark.parametrize("family", ["phimoe", "falcon"])
def test_of_a_noisy_family_every_ratio_is_one_where_nothing_moves(family, tmp_path, monkeypatch):
    """Through Lightning's own changes of mode, and validation between rollouts."""
    save_small("causal", family, tmp_path / "policy")
    watch = run(str(tmp_path / "policy"), tmp_path, lr=0.0, limit_val_batches=1)
    assert len(watch.ratios) == 16
    for number, ratios in enumerate(watch.ratios):
        # A second epoch computes the rows in other company, so it rounds otherwise.
        assert float((ratios - 1).abs().max()) <= (0 if number % 8 < 4 else 1e-5), number
    monkeypatch.setattr(loading, "silence", lambda model: None)
    noisy = run(str(tmp_path / "policy"), tmp_path, lr=0.0)
    assert not any(bool((ratios == 1).all()) for ratios in noisy.ratios)


def test_what_no_gradient_reaches_is_named_once(tmp_path, caplog):
    """The part for pictures of a model that reads text here."""
    save_small("causal", "gemma3", tmp_path / "policy")
    run(str(tmp_path / "policy"), tmp_path)
    told = [record.getMessage() for record in caplog.records if "no gradient reached" in record.getMessage()]
    assert len(told) == 1 and "such as policy.model.vision_tower" in told[0]


def test_the_sampler_and_the_trainer_agree_on_log_probabilities(tiny_policy, tmp_path):
    watch = run(tiny_policy, tmp_path)
    for rollout in watch.rollouts:
        difference = (rollout.rollout_logprobs - rollout.old_logprobs)[rollout.response_mask]
        assert float(difference.abs().max()) < 1e-5
    assert all(batch.rollout_logprobs is None for batch in watch.batches), "there is nothing to correct"


def test_every_epoch_goes_through_the_whole_rollout_group_by_group(tiny_policy, tmp_path):
    watch = run(tiny_policy, tmp_path)
    for epoch in (watch.batches[start : start + 4] for start in (0, 4, 8, 12)):
        groups = torch.cat([batch.group_ids for batch in epoch])
        assert sorted(groups.tolist()) == sorted(list(range(8)) * 4)
        assert all(len(set(part.tolist())) == 1 for part in groups.split(4))
    orders = [torch.cat([b.group_ids for b in watch.batches[s : s + 4]]).tolist() for s in (8, 12)]
    assert orders[0] != orders[1]
    assert [batch.ends_step for batch in watch.batches] == [False, True] * 8


def test_a_failed_reward_costs_its_sample_and_nothing_else(tiny_policy, tmp_path):
    limits = RewardLimits(timeout_s=0.5, max_failed_fraction=0.9)
    watch = run(tiny_policy, tmp_path, "tests.rewards_that_fail.every_third", limits)
    for rollout in watch.rollouts:
        failed = rollout.raw_rewards.isnan()
        lengths = torch.tensor([len(response) for response in rollout.responses])
        assert torch.equal(failed, (lengths % 6 < 2) | (lengths == 2))
        assert 0 < int(failed.sum()) < len(rollout)
        assert rollout.metrics["rollout/failed_fraction"] == float(failed.float().mean())
        assert not rollout.response_mask[failed].any()
        assert float(rollout.advantages[failed].abs().max()) == 0
        for group in rollout.group_ids.unique():
            members = (rollout.group_ids == group) & ~failed
            if members.sum() > 1:  # the baseline is the mean of those that have a reward
                rewards = lengths[members].float()
                expected = (rewards - rewards.mean()) / (rewards.std() + 1e-6)
                assert torch.allclose(rollout.advantages[members, 0], expected, atol=1e-5)
    for first in range(
        0, 16, 2
    ):  # weights of an optimizer step: each scored response counts the same, the others nothing
        step = watch.batches[first : first + 2]
        rows = torch.cat([batch.weights.sum(1) for batch in step])
        scored = torch.cat([batch.response_mask.any(1) for batch in step])
        assert torch.allclose(rows, torch.where(scored, 1 / scored.sum(), 0.0).double())


def test_when_most_rewards_fail_the_run_stops_and_says_why(tiny_policy, tmp_path):
    with pytest.raises(UserError, match="the grader is out of order"):
        run(tiny_policy, tmp_path, "tests.rewards_that_fail.always")

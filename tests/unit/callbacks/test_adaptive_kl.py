"""The weight of the divergence follows the divergence."""

from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from rl_lightning.algorithms import GRPO, PPO, OptimizerOptions
from rl_lightning.callbacks import AdaptiveKL, GroupNormalize
from rl_lightning.data import ChainSum, RolloutDataModule
from rl_lightning.errors import UserError
from rl_lightning.functional import kl_k3
from rl_lightning.generation import Sampling
from rl_lightning.hooks import RolloutCallback
from rl_lightning.rewards import RewardSpec
from tests.checks import assert_same, holds_only_for
from tests.support import random_rollout, trainer


def rollout_with_failures():
    """Return a rollout in which two responses count for nothing; their log-probabilities are garbage."""
    rollout = random_rollout()
    failed = torch.isin(torch.arange(len(rollout)), torch.tensor([2, 9]))
    rollout.response_mask = rollout.response_mask & ~failed[:, None]
    rollout.old_logprobs[failed] = torch.nan
    return rollout


def slow_divergence(logprobs, ref_logprobs, mask):
    """Σ_t log π/π_ref, averaged over responses that count, in plain Python."""
    per_response = [
        sum(float(own - ref) for own, ref, counts in zip(*row, strict=True) if counts)
        for row in zip(logprobs, ref_logprobs, mask, strict=True)
        if row[2].any()
    ]
    return sum(per_response) / len(per_response)


def measured(callback, rollout, tmp_path, coef=0.3):
    """Return what a rollout logs, and the coefficient after it."""
    module = SimpleNamespace(kl_coef=coef)
    callback.on_rollout_end(trainer(tmp_path), module, rollout)
    return rollout.metrics, module.kl_coef


class MeanOverTokens(AdaptiveKL):
    def divergences(self, rollout):
        return super().divergences(rollout) / rollout.lengths[rollout.response_mask.any(1)]


class OverEveryRow(AdaptiveKL):
    def divergences(self, rollout):
        return torch.cat([super().divergences(rollout), torch.zeros(2, dtype=torch.float64)])


class K3(AdaptiveKL):
    def divergences(self, rollout):
        values = torch.where(rollout.response_mask, kl_k3(rollout.old_logprobs, rollout.ref_logprobs), 0)
        return values.sum(1)[rollout.response_mask.any(1)]


@holds_only_for(AdaptiveKL, mean_over_tokens=MeanOverTokens, over_every_row=OverEveryRow, k3=K3)
def test_the_divergence_is_that_of_whole_responses(implementation):
    rollout = rollout_with_failures()
    expected = slow_divergence(rollout.old_logprobs, rollout.ref_logprobs, rollout.response_mask)
    assert abs(expected) > 0.01
    divergences = implementation(target=1.0).divergences(rollout)
    assert_same(divergences.mean(), expected)


class Unclipped(AdaptiveKL):
    def corrected(self, coef, divergence, responses):
        return coef * (1 + 0.1 * (divergence / self.target - 1) * (responses / self.horizon))


class Additive(AdaptiveKL):
    def corrected(self, coef, divergence, responses):
        return coef + super().corrected(1.0, divergence, responses) - 1


class WrongWay(AdaptiveKL):
    def corrected(self, coef, divergence, responses):
        return coef**2 / super().corrected(coef, divergence, responses)


class WithoutHorizon(AdaptiveKL):
    def corrected(self, coef, divergence, responses):
        return super().corrected(coef, divergence, self.horizon)


@holds_only_for(AdaptiveKL, unclipped=Unclipped, additive=Additive, wrong_way=WrongWay, without_horizon=WithoutHorizon)
def test_the_correction_is_ziegler_s(implementation):
    """Target 4 nats, 64 responses of a horizon of 128: half of 10% of the error, which counts up to 20%."""
    callback = implementation(target=4.0, horizon=128)
    for divergence, factor in ((4.0, 1.0), (4.4, 1.005), (3.8, 0.9975), (40.0, 1.01), (-3.0, 0.99)):
        assert callback.corrected(0.3, divergence, 64) == pytest.approx(0.3 * factor, rel=1e-12)


def test_without_a_horizon_a_rollout_is_one_step_and_bounds_hold():
    assert AdaptiveKL(target=1.0).corrected(0.5, 2.0, 64) == pytest.approx(0.51)
    assert AdaptiveKL(target=1.0).corrected(0.5, 2.0, 1) == pytest.approx(0.51)
    assert AdaptiveKL(target=1.0, max_coef=0.505).corrected(0.5, 2.0, 64) == 0.505
    assert AdaptiveKL(target=1.0, min_coef=0.495).corrected(0.5, 0.0, 64) == 0.495


def test_it_logs_what_it_measured_and_what_it_did(tmp_path):
    rollout = rollout_with_failures()
    expected = slow_divergence(rollout.old_logprobs, rollout.ref_logprobs, rollout.response_mask)
    metrics, coef = measured(AdaptiveKL(target=2 * abs(expected)), rollout, tmp_path)
    assert metrics["kl/sequence"] == pytest.approx(expected, rel=1e-12)
    assert metrics["kl/coef"] == coef == pytest.approx(0.3 * 0.98)


def test_without_old_log_probabilities_those_of_the_sampler_are_taken(tmp_path):
    rollout = random_rollout()
    rollout.old_logprobs = None
    rollout.rollout_logprobs = rollout.rollout_logprobs + 0.5
    expected = slow_divergence(rollout.rollout_logprobs, rollout.ref_logprobs, rollout.response_mask)
    assert measured(AdaptiveKL(target=1.0), rollout, tmp_path)[0]["kl/sequence"] == pytest.approx(expected, rel=1e-6)


def test_a_rollout_in_which_nothing_counts_changes_nothing(tmp_path):
    rollout = random_rollout()
    rollout.response_mask[:] = False
    metrics, coef = measured(AdaptiveKL(target=1.0), rollout, tmp_path)
    assert metrics == {"kl/coef": 0.3} and coef == 0.3


# --------------------------------------------------------------------- in a run


class Coefficients(RolloutCallback):
    """Keeps what each rollout logged, and the coefficient that each step was made with."""

    def __init__(self):
        self.rollouts, self.steps = [], []

    def on_rollout_end(self, trainer, module, rollout):
        self.rollouts.append((rollout.metrics["kl/sequence"], rollout.metrics["kl/coef"]))

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module, outputs, batch, batch_idx):
        self.steps.append((pl_module.kl_coef, float(outputs["loss"]).hex()))


def fit(kind, policy, directory, callbacks=(), ckpt_path=None, coef=0.1, epochs=3):
    module = kind(policy=policy, kl_coef=coef, optimizer=OptimizerOptions(lr=1e-2))
    data = RolloutDataModule(
        prompts=ChainSum(train_size=20, val_size=4), sampling=Sampling(max_new_tokens=6), seed=5, prompts_per_rollout=4,
        group_size=2, epochs_per_rollout=1 if kind is GRPO else 2,
        rewards=[RewardSpec("rl_lightning.rewards.functions.response_length")],
    )  # fmt: skip
    seen = Coefficients()
    advantages = [GroupNormalize()] if kind is GRPO else []
    run = trainer(
        directory, [*advantages, AdaptiveKL(target=0.01), seen, *callbacks], online=False, max_epochs=epochs,
        enable_checkpointing=True,
    )  # fmt: skip
    run.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    return module, seen


@pytest.mark.parametrize("kind", [GRPO, pytest.param(PPO, marks=pytest.mark.slow)])
def test_a_run_follows_it_and_a_resumed_one_goes_on_with_it(kind, tiny_policy, tmp_path):
    """A rollout of GRPO serves one update here, so nothing but the sampler knows its log-probabilities."""
    keep = ModelCheckpoint(tmp_path / "checkpoints", save_top_k=-1, filename="{step}", every_n_train_steps=1)
    whole, seen = fit(kind, tiny_policy, tmp_path, [keep])
    assert seen.rollouts[0][1] == pytest.approx(0.1 * 0.98)  # the policy is the reference yet
    assert seen.rollouts[-1][1] == whole.kl_coef != 0.1
    updates = len(seen.steps) // 3
    for stop in {
        1,
        len(seen.steps) - 2,
    }:  # of GRPO an end, of PPO the middle of its first rollout and the end of its second
        module, resumed = fit(kind, tiny_policy, tmp_path, ckpt_path=tmp_path / "checkpoints" / f"step={stop}.ckpt")
        assert resumed.steps == seen.steps[stop:], stop
        assert resumed.rollouts == seen.rollouts[-(-stop // updates) :]
        assert module.kl_coef == whole.kl_coef


def test_it_reaches_the_rewards_of_the_next_rollout(tiny_policy, tmp_path):
    """At γ = λ = 1 the target of the first token is the reward less β times the divergence of the response."""
    kept = []

    class Keep(RolloutCallback):
        def on_rollout_end(self, trainer, module, rollout):
            kept.append(rollout)

    fit(partial(PPO, gae_lambda=1.0), tiny_policy, tmp_path, [Keep()])
    for before, rollout in pairwise(kept):
        divergence = AdaptiveKL(target=1.0).divergences(rollout).float()
        assert float(divergence.abs().max()) > 0.01
        used, later = before.metrics["kl/coef"], rollout.metrics["kl/coef"]
        assert_same(rollout.returns[:, 0], rollout.rewards - used * divergence)
        with pytest.raises(AssertionError):
            assert_same(rollout.returns[:, 0], rollout.rewards - later * divergence)


# ------------------------------------------------------------------ what is refused


def test_a_module_without_a_divergence_is_refused(tiny_policy, tmp_path):
    with pytest.raises(UserError, match="set kl_coef of GRPO"):
        fit(GRPO, tiny_policy, tmp_path, coef=0.0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"target": 0.0}, "target must be above 0"),
        ({"target": 1.0, "horizon": 0}, "horizon must be at least 1"),
        ({"target": 1.0, "min_coef": -0.1}, "min_coef"),
        ({"target": 1.0, "min_coef": 0.5, "max_coef": 0.1}, "min_coef"),
        ({"target": 1.0, "max_coef": 0.0}, "max_coef above 0"),
    ],
)
def test_impossible_settings_are_refused(options, said):
    with pytest.raises(UserError, match=said):
        AdaptiveKL(**options)

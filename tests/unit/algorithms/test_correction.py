"""Importance weights for a sampler that is not quite the policy."""

import math
from dataclasses import replace

import pytest
import torch

from rl_lightning.algorithms import DAPO, GRPO, PPO, RFT, SamplerCorrection
from rl_lightning.algorithms.policy import Outputs
from rl_lightning.errors import UserError
from rl_lightning.functional import clipped_surrogate
from rl_lightning.generation import NativeGenerator
from tests.checks import assert_same, holds_only_for
from tests.language import LONGEST, RESPONSES, TabularPolicy, prefix_number, rows, token_logprobs
from tests.support import GROUP, KeepGradients, StoredRollouts, random_rollout, trainer
from tests.unit.algorithms.test_identities import ALL, REWARDS, every_response, gradient_of

UNBOUNDED = {"cap": math.inf}


def gradient(module, policy, batch):
    """Return ∇J of a module's loss in the table of logits of its policy."""
    module.policy, policy.table.grad = policy, None
    module.loss(batch).backward()
    return -policy.table.grad.clone()


def sampled_by(sampler, policy, advantages, old=True):
    """Return all 15 responses, weighed by the probability with which the *sampler* draws them."""
    batch = every_response(sampler, advantages, per_token=False)
    return replace(
        batch,
        rollout_logprobs=token_logprobs(sampler, ALL),
        old_logprobs=token_logprobs(policy, ALL) if old else None,
    )


# --------------------------------------------------------- what it means in expectation


def grpo(**correction):
    return GRPO(kl_coef=0.0, sampler_correction=SamplerCorrection(**correction))


class TurnedOver(GRPO):
    def corrected(self, batch, logprobs):
        swapped = replace(batch, old_logprobs=batch.rollout_logprobs, rollout_logprobs=batch.old_logprobs)
        return replace(batch, advantages=super().corrected(swapped, logprobs).advantages)


@holds_only_for(
    lambda: grpo(level="sequence", **UNBOUNDED),
    off=lambda: grpo(kind="none"),
    token_by_token=lambda: grpo(level="token", **UNBOUNDED),
    truncated=lambda: grpo(level="sequence", cap=1.1),
    masked=lambda: grpo(level="sequence", kind="mask", cap=1.1),
    turned_over=lambda: TurnedOver(kl_coef=0.0, sampler_correction=SamplerCorrection(level="sequence", **UNBOUNDED)),
)
def test_samples_of_another_policy_weighed_by_whole_responses_have_the_on_policy_gradient(make):
    """Σ_y μ(y) π(y)/μ(y) R(y) ∇ log π(y) = ∇ E_π[R]; without the weights, or token by token, it is another gradient."""
    policy, sampler = TabularPolicy(1), TabularPolicy(2)
    expected = gradient_of(policy, lambda policy: (policy.probabilities() * REWARDS).sum())
    for old in (True, False):
        assert_same(gradient(make(), policy, sampled_by(sampler, policy, REWARDS[:, None], old)), expected)


@holds_only_for(
    lambda: grpo(**UNBOUNDED),
    off=lambda: grpo(kind="none"),
    whole_responses=lambda: grpo(level="sequence", **UNBOUNDED),
    truncated=lambda: grpo(cap=1.1),
)
def test_token_by_token_it_corrects_the_tokens_but_not_the_prefixes(make):
    """With advantages of (prefix, token): ∇ Σ_s d_μ(s) Σ_a π(a|s) A(s, a), the sampler's visits d_μ frozen."""
    policy, sampler = TabularPolicy(1), TabularPolicy(2)
    table = torch.randn(7, 3, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    advantages = torch.zeros(len(RESPONSES), LONGEST, dtype=torch.float64)
    for row, y in enumerate(RESPONSES):
        for t, token in enumerate(y):
            advantages[row, t] = table[prefix_number(y[:t]), token]
    visits = sampler.states().detach()
    expected = gradient_of(policy, lambda policy: (visits[:, None] * policy.table.softmax(-1) * table).sum())
    assert_same(gradient(make(), policy, sampled_by(sampler, policy, advantages)), expected)


# ------------------------------------------------------------- the gradient coefficient


def mismatched(seed=5, spread=0.8):
    """Return a minibatch whose sampler is some way from the policy at rollout time."""
    rollout = random_rollout()
    minibatch = rollout.microbatch(torch.arange(len(rollout)), rollout.response_mask.double())
    noise = torch.randn(
        minibatch.old_logprobs.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    minibatch.rollout_logprobs = minibatch.old_logprobs + spread * noise
    return minibatch


def coefficient(module, minibatch):
    """Return log π_θ, off policy, and dJ/d log π_θ on the response tokens."""
    noise = torch.randn(minibatch.old_logprobs.shape, generator=torch.Generator().manual_seed(11), dtype=torch.float64)
    logprobs = (minibatch.old_logprobs + 0.3 * noise).requires_grad_()
    objective = module.objective(module.corrected(minibatch, logprobs), logprobs)
    torch.where(minibatch.response_mask, objective, 0).sum().backward()
    return logprobs.detach(), torch.where(minibatch.response_mask, logprobs.grad, 0)


class WeighsTheDivergence(GRPO):
    def objective(self, batch, logprobs):
        weights = batch.advantages / mismatched().advantages
        return self.surrogate(batch, logprobs) - weights.nan_to_num(1) * self.divergence(batch, logprobs)


class WeightHasAGradient(GRPO):
    def corrected(self, batch, logprobs):
        return super().corrected(replace(batch, old_logprobs=logprobs), logprobs)


class CurrentPolicyOverSampler(GRPO):
    def corrected(self, batch, logprobs):
        return super().corrected(replace(batch, old_logprobs=logprobs.detach()), logprobs)


class Uncorrected(GRPO):
    def corrected(self, batch, logprobs):
        return batch


@pytest.mark.parametrize("kind", ["truncate", "mask"])
def test_the_surrogate_is_weighed_and_the_divergence_is_not(kind):
    """GC = w ρ A 1{clip inactive} + β (π_ref/π_θ − 1), w = min(π_old/μ, C), or that within [1/C, C] and 0 beyond."""

    @holds_only_for(
        GRPO,
        weighs_the_divergence=WeighsTheDivergence,
        weight_has_a_gradient=WeightHasAGradient,
        current_policy_over_sampler=CurrentPolicyOverSampler,
        uncorrected=Uncorrected,
    )
    def check(implementation):
        minibatch = mismatched()
        module = implementation(
            kl_coef=0.25, clip_low=0.2, clip_high=0.28, sampler_correction=SamplerCorrection(kind, 1.5)
        )
        logprobs, actual = coefficient(module, minibatch)
        ratio, advantages = (logprobs - minibatch.old_logprobs).exp(), minibatch.advantages
        clipped = ((advantages > 0) & (ratio > 1.28)) | ((advantages < 0) & (ratio < 0.8))
        weights = (minibatch.old_logprobs - minibatch.rollout_logprobs).exp()
        beyond = (weights > 1.5) | ((weights < 1 / 1.5) & (kind == "mask"))
        assert beyond[minibatch.response_mask].any() and not beyond[minibatch.response_mask].all()
        weights = torch.where(beyond, {"truncate": 1.5, "mask": 0.0}[kind], weights)
        pull = 0.25 * ((minibatch.ref_logprobs - logprobs).exp() - 1)
        expected = torch.where(clipped, 0, weights * ratio * advantages) + pull
        assert_same(actual, torch.where(minibatch.response_mask, expected, 0))

    for name in (
        "real",
        "weighs_the_divergence",
        "weight_has_a_gradient",
        "current_policy_over_sampler",
        "uncorrected",
    ):
        check(name)


@pytest.mark.parametrize("make", [GRPO, DAPO, PPO])
def test_every_objective_is_homogeneous_in_the_advantage(make):
    """So to weigh the advantage is to weigh the surrogate, in objectives of other people too."""
    module = make(kl_coef=0.0, sampler_correction=SamplerCorrection(cap=1.5))
    minibatch = mismatched()
    weights, _ = module.sampler_correction.weights(
        minibatch.old_logprobs, minibatch.rollout_logprobs, minibatch.response_mask
    )
    _, plain = coefficient(module, replace(minibatch, rollout_logprobs=None))
    assert_same(coefficient(module, minibatch)[1], weights * plain)


def test_so_is_the_twice_clipped_surrogate():
    ratio = torch.linspace(0.1, 6, 50, dtype=torch.float64)
    for advantage in (torch.tensor(2.0).double(), torch.tensor(-2.0).double()):
        for weight in (0.0, 0.3, 2.0):
            whole = clipped_surrogate(ratio, weight * advantage, 0.2, 0.28, 3.0)
            assert_same(whole, weight * clipped_surrogate(ratio, advantage, 0.2, 0.28, 3.0))


# ------------------------------------------------------------------ when it acts, and what is logged


def test_without_a_sampler_of_its_own_nothing_changes_and_nothing_is_logged():
    minibatch = replace(mismatched(), rollout_logprobs=None)
    module = GRPO()
    assert module.corrected(minibatch, minibatch.old_logprobs) is minibatch
    assert not any(name.startswith("sampler/") for name in module.observed(minibatch, outputs(minibatch)))


def test_with_kind_none_the_mismatch_is_only_measured():
    minibatch = mismatched()
    module = GRPO(sampler_correction=SamplerCorrection("none"))
    assert module.corrected(minibatch, minibatch.old_logprobs) is minibatch
    logged = measured(module, [minibatch])
    assert logged["sampler/mismatch_kl"] > 0.1 and logged["sampler/ess"] < 0.9
    assert logged["sampler/truncated_fraction"] == 0


def test_rejection_sampling_is_left_alone(tiny_policy):
    """It imitates: nobody says that what it imitates must come from the policy."""
    losses = []
    for rollout_logprobs in (mismatched().rollout_logprobs, None):
        module = RFT(policy=tiny_policy, online=True)
        module.configure_model()
        losses.append(module.loss(replace(mismatched(), rollout_logprobs=rollout_logprobs)))
    assert float(losses[0].detach()) == float(losses[1].detach())


def outputs(minibatch, logprobs=None):
    """Return what a forward pass says: the policy at rollout time, unless another is given."""
    logprobs = minibatch.old_logprobs if logprobs is None else logprobs
    return Outputs(logprobs, entropy=torch.zeros_like(logprobs))


def measured(module, minibatches, logprobs=None):
    """Return what is logged of a step of some microbatches."""
    for minibatch in minibatches:
        module.observe(module.observed(minibatch, outputs(minibatch, logprobs)), minibatch)
    module.observations.add_to_loss(torch.tensor(0.0))
    return module.observations.flush(lambda sums: sums)


def last_minibatch_only(module, minibatches):
    return measured(module, minibatches[-1:])


def other_direction(module, minibatches):
    swapped = [replace(m, old_logprobs=m.rollout_logprobs, rollout_logprobs=m.old_logprobs) for m in minibatches]
    return measured(module, swapped)


@holds_only_for(measured, last_minibatch_only=last_minibatch_only, other_direction=other_direction)
def test_what_is_logged_is_over_all_tokens_of_the_step(measure):
    minibatches = [mismatched(seed) for seed in (5, 6, 7)]
    logged = measure(GRPO(sampler_correction=SamplerCorrection(cap=1.5)), minibatches)
    mask = torch.cat([m.response_mask for m in minibatches])
    log_ratio = torch.cat([m.old_logprobs - m.rollout_logprobs for m in minibatches])[mask]
    ratios = [math.exp(x) for x in log_ratio.tolist()]
    kl = sum(ratio - 1 - math.log(ratio) for ratio in ratios) / len(ratios)
    assert logged["sampler/mismatch_kl"] == pytest.approx(kl, rel=1e-12)
    assert logged["sampler/ratio_mean"] == pytest.approx(sum(ratios) / len(ratios), rel=1e-12)
    ess = sum(ratios) ** 2 / sum(ratio**2 for ratio in ratios) / len(ratios)
    assert logged["sampler/ess"] == pytest.approx(ess, rel=1e-12)
    assert logged["sampler/truncated_fraction"] == sum(ratio > 1.5 for ratio in ratios) / len(ratios)
    assert "sampler/ratio_square" not in logged


class Copy(NativeGenerator):
    samples_from_copy = True


@pytest.mark.parametrize("updates", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_generator_with_a_copy_of_the_policy_is_corrected_for(updates, tiny_policy, tmp_path):
    """One update a rollout has no old log-probabilities: there the policy at rollout time is the present one."""
    steps = {}
    for generator in (NativeGenerator, Copy):
        for kind in ("truncate", "none"):
            rollout = random_rollout(dtype=torch.float32)
            rollout.rollout_logprobs = rollout.rollout_logprobs + 0.4 * torch.linspace(-1, 1, 9)
            if updates == 1:
                rollout.old_logprobs = None
            data = StoredRollouts(rollout, group_size=GROUP, generator=generator(), epochs_per_rollout=updates)
            keep = KeepGradients()
            module = GRPO(policy=tiny_policy, kl_coef=0.0, sampler_correction=SamplerCorrection(kind))
            fit = trainer(tmp_path, [keep], max_epochs=1)
            fit.fit(module, datamodule=data)
            steps[generator, kind] = keep.steps[0]
            assert ("sampler/mismatch_kl" in fit.callback_metrics) == (generator is Copy)
    native, off, on = steps[NativeGenerator, "truncate"], steps[Copy, "none"], steps[Copy, "truncate"]
    for name in native:
        assert torch.equal(native[name], off[name]), name
    assert not torch.equal(on["lm_head.weight"], off["lm_head.weight"])


@pytest.mark.parametrize("cap", [0.5, -1.0, math.nan])
def test_a_cap_below_one_is_refused(cap):
    with pytest.raises(UserError, match="cap must be at least 1"):
        SamplerCorrection(cap=cap)


def test_the_table_of_the_language_is_what_the_policy_computes():
    """The references above stand on it."""
    policy = TabularPolicy(1)
    table = rows(ALL)
    summed = torch.where(table["response_mask"], token_logprobs(policy, ALL), 0).sum(1).exp()
    assert_same(summed, policy.probabilities().detach())


# --------------------------------------------------------------------------------------- what the sampler did not say


class Poisoned(GRPO):
    """Takes the sampler's numbers as they come."""

    def corrected(self, batch, logprobs):
        ratio = (batch.old_logprobs - batch.rollout_logprobs).exp().clamp(max=2.0)
        return replace(batch, advantages=batch.advantages * ratio)


@holds_only_for(grpo, poisoned=lambda: Poisoned(kl_coef=0.0))
def test_a_token_of_which_the_sampler_said_nothing_counts_as_the_policys_own(make):
    """The others' coefficients are as they were, its own is that of the weight 1, and it is counted."""
    said, minibatch = mismatched(), mismatched()
    holes = torch.zeros_like(minibatch.response_mask)
    holes[0, 0] = holes[3, 0] = holes[5, 0] = True
    minibatch.rollout_logprobs[0, 0] = torch.nan
    minibatch.rollout_logprobs[3, 0] = -torch.inf
    minibatch.rollout_logprobs[5, 0] = torch.inf
    module = make()
    logprobs, found = coefficient(module, minibatch)
    assert bool(found.isfinite().all())
    _, whole = coefficient(grpo(), said)
    _, plain = coefficient(grpo(kind="none"), said)
    assert_same(found, torch.where(holes, plain, whole))
    logged = measured(module, [minibatch], logprobs)
    assert logged["sampler/missing_fraction"] == pytest.approx(3 / int(minibatch.response_mask.sum()))
    assert math.isfinite(logged["sampler/mismatch_kl"]) and math.isfinite(logged["sampler/ess"])


def test_an_infinite_weight_leaves_an_advantage_of_nothing_alone():
    minibatch = mismatched()
    minibatch.rollout_logprobs = minibatch.rollout_logprobs - 2000.0
    minibatch.advantages = torch.zeros_like(minibatch.advantages)
    assert float(coefficient(grpo(**UNBOUNDED), minibatch)[1].abs().max()) == 0


class Overflows(GRPO):
    def ratio(self, batch, logprobs):
        return (logprobs - batch.old_logprobs).exp()


@holds_only_for(grpo, overflows=lambda: Overflows(kl_coef=0.0))
def test_an_overflowing_ratio_costs_nothing_but_itself(make):
    """A > 0 and ρ = e^1000: a finite loss, and the gradient of everything else."""
    minibatch = random_rollout().microbatch(torch.arange(16))
    minibatch.rollout_logprobs, minibatch.advantages = None, minibatch.advantages.abs() + 0.1
    _, whole = coefficient(make(), minibatch)
    held = torch.zeros_like(minibatch.response_mask)
    held[2, 0] = held[7, 0] = True
    logprobs = minibatch.old_logprobs.clone()
    minibatch.old_logprobs = torch.where(held, minibatch.old_logprobs - 1000, minibatch.old_logprobs)
    noise = torch.randn(logprobs.shape, generator=torch.Generator().manual_seed(11), dtype=torch.float64)
    logprobs = (logprobs + 0.3 * noise).requires_grad_()
    objective = make().objective(minibatch, logprobs)
    total = torch.where(minibatch.response_mask, objective, 0).sum()
    total.backward()
    assert bool(total.isfinite()) and torch.equal(logprobs.grad * minibatch.response_mask, torch.where(held, 0, whole))

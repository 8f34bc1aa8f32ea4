"""Every module's own objective against the gradient coefficient that the notebook and DeepSeekMath (Table 10) give it.

∇J = E Σ w · GC · ∇ log π_θ, so dJ_{i,t}/d log π_θ must be GC_{i,t}.
"""

import pytest
import torch

from rl_lightning.algorithms import GRPO, SFT, PolicyModule
from rl_lightning.errors import UserError
from rl_lightning.models import LoadOptions, response_logits
from tests.checks import assert_same, holds_only_for
from tests.shrunk import save_small
from tests.support import random_rollout


def batch():
    rollout = random_rollout()
    return rollout.microbatch(torch.arange(len(rollout)), rollout.response_mask.double())


def coefficient(module, minibatch, shift=0.3):
    """Return log π_θ, off policy, and dJ/d log π_θ on the response tokens, by autograd."""
    generator = torch.Generator().manual_seed(11)
    noise = torch.randn(minibatch.old_logprobs.shape, generator=generator, dtype=torch.float64)
    logprobs = (minibatch.old_logprobs + shift * noise).requires_grad_()
    objective = module.objective(minibatch, logprobs)
    torch.where(minibatch.response_mask, objective, 0).sum().backward()
    return logprobs.detach(), torch.where(minibatch.response_mask, logprobs.grad, 0)


class SquaredSFT(SFT):
    def objective(self, batch, logprobs):
        return logprobs * logprobs.detach().abs()


@holds_only_for(SFT, squared=SquaredSFT)
def test_sft_is_one(implementation):
    minibatch = batch()
    assert_same(coefficient(implementation(), minibatch)[1], minibatch.response_mask.double())


class NoClip(GRPO):
    def surrogate(self, batch, logprobs):
        return self.ratio(batch, logprobs) * batch.advantages


class OtherDivergence(GRPO):
    """k3 of the ratio turned over: a sign lost."""

    def divergence(self, batch, logprobs):
        u = logprobs - batch.ref_logprobs
        return u.exp() - u - 1


class NoBeta(GRPO):
    def objective(self, batch, logprobs):
        return super().objective(batch, logprobs) - (1 - self.kl_coef) * self.divergence(batch, logprobs)


class Reinforce(GRPO):
    def surrogate(self, batch, logprobs):
        return logprobs * batch.advantages


@holds_only_for(GRPO, no_clip=NoClip, other_divergence=OtherDivergence, no_beta=NoBeta, reinforce=Reinforce)
def test_grpo_is_the_clipped_ratio_times_the_advantage_plus_the_pull_of_the_reference(implementation):
    """GC = ρ A 1{clip inactive} + β (π_ref/π_θ − 1), off policy, in all four cases of the clip."""
    minibatch = batch()
    module = implementation(kl_coef=0.25, clip_low=0.2, clip_high=0.28)
    logprobs, actual = coefficient(module, minibatch)
    ratio, advantages = (logprobs - minibatch.old_logprobs).exp(), minibatch.advantages
    clipped = ((advantages > 0) & (ratio > 1.28)) | ((advantages < 0) & (ratio < 0.8))
    mask = minibatch.response_mask
    assert clipped[mask].any() and not clipped[mask].all()
    pull = 0.25 * ((minibatch.ref_logprobs - logprobs).exp() - 1)
    expected = torch.where(clipped, 0, ratio * advantages) + pull
    assert_same(actual, torch.where(mask, expected, 0))


def test_grpo_on_policy_is_the_plain_policy_gradient():
    """At θ = θ_old the clip is inactive and ρ = 1: GC = A + β (π_ref/π_θ − 1); with k3's own zero at the reference."""
    minibatch = batch()
    minibatch.ref_logprobs = minibatch.old_logprobs.clone()
    _, actual = coefficient(GRPO(kl_coef=1.0), minibatch, shift=0.0)
    assert_same(actual, torch.where(minibatch.response_mask, minibatch.advantages, 0))


def test_the_estimator_option_reaches_the_objective(caplog):
    minibatch = batch()
    gradients = {name: coefficient(GRPO(kl_estimator=name), minibatch)[1] for name in ("k1", "k2", "k3", "rho_k3")}
    assert "no gradient in expectation" in caplog.text
    assert len({float(gradient.sum()) for gradient in gradients.values()}) == 4


@pytest.mark.parametrize(
    ("place", "estimator", "said"),
    [
        ("loss", "k1", "k1 in the loss has no gradient in expectation"),
        ("reward", "k2", "k2 in the reward does not follow the divergence"),
        ("reward", "k3", "k3 in the reward does not follow the divergence"),
        ("reward", "k3_k2grad", "k3_k2grad in the reward does not follow the divergence"),
        ("reward", "rho_k3", "rho_k3 in the reward does not follow the divergence"),
        ("reward", "k1", None),
        ("reward", None, None),
        ("loss", None, None),
        ("loss", "rho_k3", None),
    ],
)
def test_estimators_with_no_gradient_or_a_wrong_one_are_warned_of_by_name(place, estimator, said, caplog):
    module = GRPO(kl_in=place, kl_estimator=estimator)
    assert module.kl_estimator == (estimator or {"loss": "k3", "reward": "k1"}[place])
    assert (said in caplog.text) if said else not caplog.text


def test_in_the_reward_the_divergence_is_taken_off_and_not_in_the_objective():
    rollout = random_rollout()
    before = rollout.rewards.clone()
    module = GRPO(kl_coef=0.3, kl_in="reward")
    module.on_rollout_scored(rollout)
    mask = rollout.response_mask
    k1 = torch.where(mask, rollout.old_logprobs - rollout.ref_logprobs, 0)
    assert torch.equal(rollout.rewards, before)
    assert_same(before - rollout.penalised_rewards, 0.3 * k1.sum(1), relative=1e-9)
    assert_same(before - module.token_rewards(rollout).sum(1), 0.3 * k1.sum(1), relative=1e-9)
    assert rollout.metrics["kl/k1"] == pytest.approx(float(k1.sum() / mask.sum()))
    minibatch = batch()
    assert_same(coefficient(module, minibatch)[1], coefficient(GRPO(kl_coef=0.0), minibatch)[1])
    unmoved = random_rollout()
    GRPO(kl_coef=0.3).on_rollout_scored(unmoved)
    assert torch.equal(unmoved.penalised_rewards, before)


class NoEntropy(GRPO):
    entropy_coef = property(lambda self: 0.0, lambda self, value: None)


@pytest.mark.parametrize("kind", [GRPO, NoEntropy])
def test_an_entropy_bonus_moves_the_policy_along_the_gradient_of_the_entropy(kind, tiny_policy):
    """The difference that the coefficient makes to the loss's gradient is that of −Σ w c H."""
    gradients = []
    for coefficient_of_entropy in (0.0, 0.7):
        module = kind(
            policy=tiny_policy, load=LoadOptions(dtype="float64"), kl_coef=0.0, entropy_coef=coefficient_of_entropy
        )
        module.configure_model()
        module.loss(batch()).backward()
        gradients.append(module.policy.lm_head.weight.grad.clone())
    minibatch = batch()
    module.policy.zero_grad()
    logits = response_logits(module.policy, minibatch.input_ids, minibatch.attention_mask, minibatch.response_length)
    entropy = -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)
    (-0.7 * minibatch.weights * entropy).sum().backward()
    if kind is GRPO:
        assert_same(gradients[1] - gradients[0], module.policy.lm_head.weight.grad, relative=1e-9)
    else:
        assert torch.equal(gradients[0], gradients[1])


def test_grpo_without_old_logprobs_takes_the_current_ones():
    minibatch = batch()
    old = minibatch.old_logprobs
    minibatch.old_logprobs = None
    module, logprobs = GRPO(kl_coef=0.0), old.clone().requires_grad_()
    torch.where(minibatch.response_mask, module.objective(minibatch, logprobs), 0).sum().backward()
    assert_same(logprobs.grad, torch.where(minibatch.response_mask, minibatch.advantages, 0))


def test_what_lies_in_the_padding_changes_nothing(tiny_policy):
    losses = []
    for fill in (0, 7):
        module = GRPO(policy=tiny_policy, load=LoadOptions(dtype="float64"), kl_coef=0.5)
        module.configure_model()
        minibatch = batch()
        minibatch.input_ids = torch.where(minibatch.attention_mask, minibatch.input_ids, fill)
        for name in ("old_logprobs", "ref_logprobs", "advantages"):
            garbage = torch.full_like(getattr(minibatch, name), [0.0, torch.nan][fill > 0])
            setattr(minibatch, name, torch.where(minibatch.response_mask, getattr(minibatch, name), garbage))
        loss = module.loss(minibatch)
        loss.backward()
        losses.append((float(loss), module.policy.lm_head.weight.grad.clone()))
    assert losses[0][0] == losses[1][0]
    assert torch.equal(losses[0][1], losses[1][1])


def test_the_reference_is_frozen_and_in_no_checkpoint(tiny_policy):
    module = GRPO(policy=tiny_policy, kl_coef=0.1)
    module.configure_model()
    assert module.reference is not None
    assert not any(parameter.requires_grad for parameter in module.reference.parameters())
    assert not any(name.startswith("reference") for name in module.state_dict())
    module.train()
    assert not module.reference.training and module.policy.training
    other = GRPO(policy=tiny_policy, kl_coef=0.1)
    other.configure_model()
    other.load_state_dict(module.state_dict())
    broken = {name: value for name, value in module.state_dict().items() if "lm_head" not in name}
    with pytest.raises(UserError, match="lm_head"):
        other.load_state_dict(broken)


def test_no_reference_is_loaded_without_a_use_for_it(tiny_policy):
    module = GRPO(policy=tiny_policy, kl_coef=0.0)
    module.configure_model()
    assert module.reference is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kl_coef": -0.1}, "kl_coef"),
        ({"clip_low": 1.5}, "clip_low"),
        ({"clip_high": -0.5}, "clip_high"),
        ({"kl_coef": 0.0, "reference": "embedded"}, "reference"),
    ],
)
def test_impossible_settings_are_refused(options, said):
    with pytest.raises(UserError, match=said):
        GRPO(**options)


def test_a_module_without_an_objective_says_so(tiny_policy):
    module = PolicyModule(tiny_policy)
    module.configure_model()
    with pytest.raises(TypeError, match="must define objective"):
        module.loss(batch())


def test_a_policy_that_also_reads_pictures_has_a_reference(tmp_path):
    """Its vocabulary stands in the configuration of its text model."""
    save_small("causal", "gemma3", tmp_path)
    module = GRPO(policy=str(tmp_path), reference=str(tmp_path), kl_coef=0.1)
    module.configure_model()
    module.train()
    rollout = random_rollout()
    minibatch = rollout.microbatch(torch.arange(len(rollout)), rollout.response_mask.float())
    assert not hasattr(module.policy_files.config, "vocab_size")
    with torch.no_grad():
        assert torch.equal(module.logprobs(minibatch), module.reference_logprobs(minibatch))

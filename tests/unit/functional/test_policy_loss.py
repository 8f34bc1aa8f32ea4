"""The clipped surrogate and the estimators of the divergence."""

import math

import pytest
import torch

from rl_lightning.functional import clipped_surrogate, kl_k1, kl_k3, kl_penalty
from tests.checks import assert_same, holds_only_for

RATIO = torch.tensor([0.5, 0.79, 0.81, 1.0, 1.19, 1.21, 1.3, 2.0], dtype=torch.float64)


def no_minimum(ratio, advantages, clip_low=0.2, clip_high=None):
    return ratio.clamp(1 - clip_low, 1 + (clip_high or clip_low)) * advantages


def no_clip(ratio, advantages, clip_low=0.2, clip_high=None):
    return ratio * advantages


def one_bound(ratio, advantages, clip_low=0.2, clip_high=None):
    return clipped_surrogate(ratio, advantages, clip_low, clip_low)


@holds_only_for(clipped_surrogate, no_minimum=no_minimum, no_clip=no_clip, one_bound=one_bound)
def test_value_and_gradient_are_the_closed_form(implementation):
    """S and dS/dρ = A where the clip does not bind, 0 where it does."""
    for advantage in (1.5, -0.5):
        for low, high in ((0.2, 0.2), (0.2, 0.28)):
            ratio = RATIO.clone().requires_grad_()
            surrogate = implementation(ratio, torch.full_like(RATIO, advantage), low, high)
            surrogate.sum().backward()
            for i, r in enumerate(RATIO.tolist()):
                binds = (advantage > 0 and r > 1 + high) or (advantage < 0 and r < 1 - low)
                value = advantage * ((1 + high if advantage > 0 else 1 - low) if binds else r)
                assert_same(surrogate[i].detach(), torch.tensor(value, dtype=torch.float64))
                assert float(ratio.grad[i]) == (0.0 if binds else advantage)


def test_clip_higher_frees_a_token_that_the_symmetric_clip_holds():
    for high, gradient in ((0.2, 0.0), (0.28, 1.0)):
        ratio = torch.tensor(1.25, requires_grad=True)
        clipped_surrogate(ratio, torch.tensor(1.0), 0.2, high).backward()
        assert float(ratio.grad) == gradient


def test_at_a_bound_the_gradient_passes():
    """The documented choice at the kink; 1.25 and 0.75 are exact in binary."""
    for bound, advantage in ((1.25, 1.0), (0.75, -1.0)):
        ratio = torch.tensor(bound, requires_grad=True)
        clipped_surrogate(ratio, torch.tensor(advantage), 0.25).backward()
        assert float(ratio.grad) == advantage


def test_at_ratio_one_the_tie_of_the_minimum_gives_the_whole_gradient():
    ratio = torch.ones(2, dtype=torch.float64, requires_grad=True)
    clipped_surrogate(ratio, torch.tensor([2.0, -3.0], dtype=torch.float64)).sum().backward()
    assert ratio.grad.tolist() == [2.0, -3.0]


def test_one_clip_is_both():
    advantages = torch.linspace(-1, 1, 8, dtype=torch.float64)
    assert torch.equal(clipped_surrogate(RATIO, advantages, 0.1), clipped_surrogate(RATIO, advantages, 0.1, 0.1))


# ------------------------------------------------------------------------- KL


def divergence(p, q):
    return (p * (p / q).log()).sum()


POLICY = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
REFERENCE = torch.tensor([0.25, 0.25, 0.3, 0.2], dtype=torch.float64)


@pytest.mark.parametrize("estimator", [kl_k1, kl_k3])
def test_expected_value_is_the_divergence_by_enumeration(estimator):
    expected = (POLICY * estimator(POLICY.log(), REFERENCE.log())).sum()
    assert_same(expected, divergence(POLICY, REFERENCE))
    with pytest.raises(AssertionError):  # the other direction is another number
        assert_same(expected, divergence(REFERENCE, POLICY))


def test_k3_is_the_notebooks_function_of_the_ratio():
    r = REFERENCE / POLICY
    assert_same(kl_k3(POLICY.log(), REFERENCE.log()), r - r.log() - 1)
    assert float(kl_k3(POLICY.log(), POLICY.log()).abs().max()) == 0
    assert bool((kl_k3(POLICY.log(), REFERENCE.log()) >= 0).all())


def test_k3_keeps_its_digits_near_the_reference():
    u = 1e-4
    assert math.isclose(float(kl_k3(torch.tensor(u), torch.tensor(0.0))), u * u / 2, rel_tol=1e-3)


def expected_gradient(estimator):
    """∇ of an estimator as a loss, samples frozen, in the logits of the policy."""
    logits = POLICY.log().clone().requires_grad_()
    logprobs = logits.log_softmax(0)
    (POLICY * estimator(logprobs, REFERENCE.log())).sum().backward()
    return logits.grad


def true_gradient(direction):
    logits = POLICY.log().clone().requires_grad_()
    probs = logits.softmax(0)
    (divergence(REFERENCE, probs) if direction == "forward" else divergence(probs, REFERENCE)).backward()
    return logits.grad


def test_k3_as_a_loss_has_the_gradient_of_the_forward_divergence():
    assert_same(expected_gradient(kl_k3), true_gradient("forward"))
    with pytest.raises(AssertionError):
        assert_same(expected_gradient(kl_k3), true_gradient("reverse"))


def test_k1_as_a_loss_has_no_gradient():
    assert float(expected_gradient(kl_k1).abs().max()) < 1e-15


OLD = torch.tensor([0.4, 0.2, 0.2, 0.2], dtype=torch.float64)


def penalty_gradient(estimator, sampled_from):
    """∇ E_{y ~ sampled_from}[penalty], samples frozen, in the logits of the policy."""
    logits = POLICY.log().clone().requires_grad_()
    logprobs = logits.log_softmax(0)
    log_ratio = logprobs - sampled_from.log()
    (sampled_from * kl_penalty(logprobs, REFERENCE.log(), estimator, log_ratio)).sum().backward()
    return logits.grad


@pytest.mark.parametrize("estimator", ["k2", "k3_k2grad", "rho_k3"])
def test_on_policy_these_have_the_gradient_of_the_reverse_divergence(estimator):
    assert_same(penalty_gradient(estimator, POLICY), true_gradient("reverse"))
    with pytest.raises(AssertionError):
        assert_same(penalty_gradient(estimator, POLICY), true_gradient("forward"))


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "k3_k2grad", "rho_k3"])
def test_off_policy_only_one_has(estimator):
    gradient = penalty_gradient(estimator, OLD)
    if estimator == "rho_k3":
        assert_same(gradient, true_gradient("reverse"))
    else:
        with pytest.raises(AssertionError):
            assert_same(gradient, true_gradient("reverse"), relative=0.05)


def test_the_straight_through_estimator_has_the_value_of_k3():
    zeros = torch.zeros_like(POLICY)
    value = kl_penalty(POLICY.log(), REFERENCE.log(), "k3_k2grad", zeros)
    assert_same(value, kl_k3(POLICY.log(), REFERENCE.log()))


def test_a_ratio_without_bound_is_no_reason_for_not_a_number():
    logprobs = torch.tensor([-1.0, -2.0], requires_grad=True)
    log_ratio = logprobs + 1000.0
    value = kl_penalty(logprobs, torch.tensor([-1.0, -2.5]), "rho_k3", log_ratio)
    assert float(value[0]) == 0.0 and float(value[1]) > 1e30
    value[0].backward()
    assert bool(logprobs.grad.isfinite().all())


def test_an_unknown_estimator_is_named():
    with pytest.raises(ValueError, match="k3_k2grad"):
        kl_penalty(POLICY.log(), REFERENCE.log(), "k4", POLICY)

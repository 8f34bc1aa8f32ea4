"""Where an objective has a kink or overflows, its gradient is decided here and not by a version of torch."""

import math

import pytest
import torch

from rl_lightning.functional import (
    clipped_surrogate,
    dpo_objective,
    entropy_from_logits,
    kl_k3,
    kl_penalty,
    known_or,
    log_odds,
    logprobs_from_logits,
    probability_ratio,
    sampler_ratio,
    value_loss,
    weighted_surrogate,
)
from tests.checks import holds_only_for

torch_clamp = torch.Tensor.clamp


def clamp_without_gradient_at_its_bounds(self, min=None, max=None):
    """torch 2.14's."""
    bounded = torch_clamp(self, min, max)
    inside = torch.ones_like(self, dtype=torch.bool)
    inside = inside if min is None else inside & (self > min)
    inside = inside if max is None else inside & (self < max)
    return torch.where(inside, self, bounded.detach())


def clamp_with_gradient_at_its_bounds(self, min=None, max=None):
    """torch 2.13's."""
    bounded = torch_clamp(self, min, max)
    return torch.where(bounded == self, self, bounded.detach())


@pytest.fixture(params=[clamp_without_gradient_at_its_bounds, clamp_with_gradient_at_its_bounds], autouse=True)
def either_torch(request, monkeypatch):
    """Run every test with what two versions of torch make of a bound."""
    monkeypatch.setattr(torch.Tensor, "clamp", request.param)


def slope(function, *arguments):
    """Return the value of a function of one number, and its slope, both as floats."""
    at = torch.tensor(arguments[0], requires_grad=True)
    value = function(at, *arguments[1:])
    (gradient,) = torch.autograd.grad(value, at)
    return float(value.detach()), float(gradient)


# ------------------------------------------------------------------------------------------------------ the surrogate


def by_torch(ratio, advantages, clip_low=0.2, clip_high=None, dual_clip=None):
    high = clip_low if clip_high is None else clip_high
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(1 - clip_low, 1 + high) * advantages)
    if dual_clip is None:
        return surrogate
    return torch.where(advantages < 0, torch.maximum(surrogate, dual_clip * advantages), surrogate)


def binds_at_its_bound(ratio, advantages, clip_low=0.2, clip_high=None, dual_clip=None):
    inside = (ratio < 1 + (clip_high or clip_low)) & (ratio > 1 - clip_low)
    return torch.where(inside, 1.0, 0.0) * clipped_surrogate(ratio, advantages, clip_low, clip_high, dual_clip)


@holds_only_for(clipped_surrogate, by_torch=by_torch, binds_at_its_bound=binds_at_its_bound)
def test_at_a_bound_the_surrogate_has_its_whole_gradient(implementation):
    """All bounds are exact in binary; one step beyond each of them the gradient is 0."""
    for bound, advantage, outwards in ((1.25, 2.0, torch.inf), (0.75, -2.0, -torch.inf), (3.0, -2.0, torch.inf)):
        advantages = torch.tensor(advantage)
        options = (advantages, 0.25, 0.25, 3.0)
        assert slope(implementation, bound, *options) == (bound * advantage, advantage)
        beyond = float(torch.nextafter(torch.tensor(bound), torch.tensor(outwards)))
        assert slope(implementation, beyond, *options) == (bound * advantage, 0.0)
        inside = float(torch.nextafter(torch.tensor(bound), torch.tensor(-outwards)))
        assert slope(implementation, inside, *options)[1] == advantage
    assert slope(implementation, 1.0, torch.tensor(-2.0), 0.0, 0.0, None) == (-2.0, -2.0)
    assert slope(implementation, 1.0, torch.tensor(2.0), 0.0, 0.0, None) == (2.0, 2.0)


def surrogate_of(ratio):
    """Return S as a function of log π, log π_old and the advantage."""
    return lambda logprob, old, advantage, **clips: clipped_surrogate(ratio(logprob, old), advantage, **clips)


def plain_exponential(logprobs, old_logprobs):
    return (logprobs - old_logprobs).exp()


def cut_off(logprobs, old_logprobs):
    """A clamp of the log-ratio, which kills the gradient of what it touches and has another value."""
    return (logprobs - old_logprobs).clamp(-20, 20).exp()


@holds_only_for(probability_ratio, plain_exponential=plain_exponential, cut_off=cut_off)
def test_a_ratio_is_the_exponential_and_one_that_overflows_has_no_gradient(ratio):
    for dtype, largest in ((torch.float16, 11.0), (torch.bfloat16, 88.0), (torch.float32, 88.7), (torch.float64, 709)):
        logprobs = torch.tensor([0.0, -0.5, 10.5, -25.0, largest, 1.01 * largest, torch.inf, -torch.inf], dtype=dtype)
        logprobs.requires_grad_()
        found = ratio(logprobs, torch.zeros_like(logprobs))
        expected = logprobs.detach().exp()
        assert torch.equal(found, expected) and bool(found[-3:-1].isinf().all())
        (gradient,) = torch.autograd.grad(found.sum(), logprobs)
        assert torch.equal(gradient, torch.where(expected.isinf(), 0, expected))


def summed(logprobs, old_logprobs, mask, level):
    log_ratio = logprobs - old_logprobs
    return (log_ratio.detach().sum(1, keepdim=True) + (log_ratio - log_ratio.detach())).exp()


@holds_only_for(probability_ratio, summed=summed)
def test_a_token_that_one_policy_finds_impossible_is_a_ratio_of_its_response_too(ratio):
    for own, old, expected in ((-torch.inf, -1.0, 0.0), (-1.0, -torch.inf, torch.inf)):
        logprobs = torch.tensor([[own, -1.0]], requires_grad=True)
        found = ratio(logprobs, torch.tensor([[old, -1.0]]), torch.ones(1, 2, dtype=torch.bool), "sequence")
        assert found.tolist() == [[expected, expected]]
        (gradient,) = torch.autograd.grad(found.sum(), logprobs)
        assert gradient.tolist() == [[0.0, 0.0]]


@holds_only_for(surrogate_of(probability_ratio), plain_exponential=surrogate_of(plain_exponential))
def test_a_clip_that_holds_an_overflowing_ratio_has_gradient_zero(surrogate):
    for overflow in (88.8, 1e4, torch.inf):
        for advantage, clips, value in ((2.0, {}, 2.5), (-2.0, {"dual_clip": 3.0}, -6.0), (0.0, {}, 0.0)):
            old, advantages = torch.tensor(0.0), torch.tensor(advantage)
            found = slope(lambda x, o=old, a=advantages, c=clips: surrogate(x, o, a, clip_low=0.25, **c), overflow)
            assert found == (value, 0.0), (overflow, advantage)
    for advantage, value in ((2.0, 0.0), (-2.0, -1.5)):
        found = slope(lambda x, a=advantage: surrogate(x, torch.tensor(0.0), torch.tensor(a), clip_low=0.25), -200.0)
        assert found == (value, 0.0)


def test_without_a_dual_clip_a_negative_advantage_at_an_infinite_ratio_is_infinitely_bad():
    """That step is skipped, and said to be; its gradient is a number all the same."""
    value, gradient = slope(lambda x: clipped_surrogate(probability_ratio(x, x.detach() - 89), torch.tensor(-1.0)), 0.0)
    assert (value, gradient) == (-torch.inf, 0.0)


def test_what_is_not_a_number_is_not_hidden():
    """A ratio of NaN is a policy that is broken, whatever a clip would make of it."""
    for advantage in (1.0, -1.0, 0.0):
        assert clipped_surrogate(torch.tensor(torch.nan), torch.tensor(advantage), dual_clip=2.0).isnan()
    assert clipped_surrogate(torch.tensor(1.0), torch.tensor(torch.nan)).isnan()
    assert probability_ratio(torch.tensor(torch.nan), torch.tensor(0.0)).isnan()
    assert value_loss(torch.tensor(torch.nan), torch.tensor(0.0), torch.tensor(0.0), clip=1.0)[0].isnan()


# ------------------------------------------------------------------------------------------------------ the value loss


def value_loss_by_torch(values, returns, old_values, clip):
    loss = 0.5 * (values - returns).square()
    clipped = 0.5 * (old_values + (values - old_values).clamp(-clip, clip) - returns).square()
    return torch.maximum(loss, clipped), clipped > loss


@holds_only_for(value_loss, by_torch=value_loss_by_torch)
def test_at_its_kinks_the_value_loss_has_the_gradient_of_the_unclipped_one(implementation):
    """V_old = 0 and c = 0.5: on a bound, towards the target and away from it; and beyond it, where both terms are equal."""
    for value, target in ((0.5, 2.0), (-0.5, -2.0), (0.5, -2.0), (-0.5, 2.0), (0.75, 0.625), (-0.75, -0.625)):
        found = slope(lambda v, t=target: implementation(v, torch.tensor(t), torch.tensor(0.0), 0.5)[0], value)
        assert found == (0.5 * (value - target) ** 2, value - target), (value, target)


def test_rounding_alone_is_no_clip():
    """V_old + (V − V_old) is not V to the last digit."""
    values, old = torch.rand(4096), 100 * torch.rand(4096)
    loss, binds = value_loss(values, torch.zeros(4096), old, clip=1000.0)
    assert torch.equal(loss, 0.5 * values.square()) and not binds.any()
    moved = old + (values - old)
    assert bool((moved.square() > values.square()).any())


# ------------------------------------------------------------------------------------------- bounds against what overflows


def odds_by_clamp(logprobs):
    logprobs = logprobs.clamp(max=-torch.finfo(logprobs.dtype).eps)
    return logprobs - (-logprobs.expm1()).log()


def rho_k3(log_ratio):
    return kl_penalty(torch.tensor(-1.0), torch.tensor(-2.0), "rho_k3", log_ratio)


def rho_k3_by_clamp(log_ratio):
    return log_ratio.clamp(max=MOST).exp() * kl_k3(torch.tensor(-1.0), torch.tensor(-2.0))


MOST = math.log(torch.finfo(torch.float32).max) - 1


@pytest.mark.parametrize(
    ("implementation", "mutant", "bound"),
    [(log_odds, odds_by_clamp, -torch.finfo(torch.float32).eps), (rho_k3, rho_k3_by_clamp, float(torch.tensor(MOST)))],
)
def test_at_a_bound_against_overflow_the_gradient_is_the_same_in_every_torch(
    implementation, mutant, bound, monkeypatch
):
    slopes = {implementation: [], mutant: []}
    for clamp in (clamp_without_gradient_at_its_bounds, clamp_with_gradient_at_its_bounds):
        monkeypatch.setattr(torch.Tensor, "clamp", clamp)
        for one, found in slopes.items():
            found.append(slope(one, bound)[1])
    whole, again = slopes[implementation]
    assert whole == again == max(slopes[mutant]) > 0 and min(slopes[mutant]) == 0
    beyond = float(torch.nextafter(torch.tensor(bound), torch.tensor(torch.inf)))
    assert slope(implementation, beyond) == (slope(implementation, bound)[0], 0.0)


# --------------------------------------------------------------------------------------------- what is infinite elsewhere


def test_a_token_of_probability_zero_has_no_entropy_and_no_gradient():
    logits = torch.tensor([[0.0, 1.0, -torch.inf], [2.0, -torch.inf, -torch.inf]], requires_grad=True)
    entropy = entropy_from_logits(logits, temperature=0.5)
    pair = torch.tensor([0.0, 2.0]).log_softmax(0)
    assert entropy.tolist() == pytest.approx([float(-(pair.exp() * pair).sum()), 0.0])
    (gradient,) = torch.autograd.grad(entropy.sum(), logits)
    assert bool(gradient.isfinite().all()) and float(gradient[0, 2]) == 0
    logprobs = logprobs_from_logits(logits, torch.tensor([1, 0]))
    (gradient,) = torch.autograd.grad(logprobs.sum(), logits)
    assert bool(gradient.isfinite().all())


def test_preferences_that_are_far_apart_have_a_finite_gradient():
    for margin in (1e4, -1e4):
        for smoothing in (0.0, 0.1):
            chosen = torch.tensor([margin], requires_grad=True)
            objective = dpo_objective(chosen, torch.zeros(1), beta=5.0, label_smoothing=smoothing)
            (gradient,) = torch.autograd.grad(objective.sum(), chosen)
            wrong = 1 - smoothing if margin < 0 else 0.0
            assert float(gradient) == pytest.approx(5 * (wrong - (smoothing if margin > 0 else 0.0)))


def test_k3_that_overflows_is_infinite_and_not_hidden():
    value, gradient = slope(lambda x: kl_k3(x, torch.tensor(90.0)), 0.0)
    assert value == torch.inf and gradient == -torch.inf


# --------------------------------------------------------------------------------------- a sampler that does not say


def ignores_what_is_missing(logprobs, sampler_logprobs, mask, level="token"):
    return torch.where(mask, logprobs - sampler_logprobs, 0).exp()


@holds_only_for(sampler_ratio, ignores_what_is_missing=ignores_what_is_missing)
def test_a_token_without_a_finite_number_of_the_sampler_has_the_ratio_one(implementation):
    own = torch.tensor([[-1.0, -2.0, -3.0, -4.0]])
    sampler = torch.tensor([[-1.5, torch.nan, -torch.inf, torch.inf]])
    mask = torch.ones_like(own, dtype=torch.bool)
    ratio = implementation(own, sampler, mask)
    assert ratio.tolist()[0] == pytest.approx([torch.tensor(0.5).exp().item(), 1.0, 1.0, 1.0])
    whole = implementation(own, sampler, mask, "sequence")
    assert whole.tolist()[0] == pytest.approx(4 * [torch.tensor(0.5).exp().item()])
    assert known_or(sampler, own).tolist() == [[-1.5, -2.0, -3.0, -4.0]]


@pytest.mark.parametrize("advantage", [-2.0, 0.0, 2.0])
@pytest.mark.parametrize("level", ["token", "sequence", "sequence_mean"])
def test_a_term_whose_weight_overflows_costs_nothing_but_itself(level, advantage):
    logprobs = torch.tensor([[-1.0, -2.0], [-1.0, -2.0]], requires_grad=True)
    old = torch.tensor([[-1e5, -2.0], [-1.0, -2.0]])
    weight = probability_ratio(logprobs, old, torch.ones(2, 2, dtype=torch.bool), level)
    assert weight.isinf().any()
    surrogate = weighted_surrogate(logprobs, torch.full((2, 1), advantage), weight)
    surrogate.sum().backward()
    expected = torch.where(weight.isinf(), 0, advantage)
    assert torch.equal(surrogate.detach(), expected) and torch.equal(logprobs.grad, expected)

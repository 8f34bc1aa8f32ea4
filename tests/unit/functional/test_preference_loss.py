"""Bradley–Terry and DPO in closed form."""

import math

import pytest
import torch

from rl_lightning.functional import bradley_terry, dpo_objective
from tests.checks import assert_same, holds_only_for


def turned_over(difference, label_smoothing=0.0):
    return bradley_terry(-difference, label_smoothing)


def never_smooth(difference, label_smoothing=0.0):
    return bradley_terry(difference)


def the_chance_itself(difference, label_smoothing=0.0):
    return bradley_terry(difference, label_smoothing).exp()


@holds_only_for(bradley_terry, turned_over=turned_over, never_smooth=never_smooth, no_log=the_chance_itself)
def test_value_and_gradient_are_the_closed_form(implementation):
    """J = (1 − ε) log σ(z) + ε log σ(−z), dJ/dz = (1 − ε) σ(−z) − ε σ(z)."""
    for epsilon in (0.0, 0.1, 0.4):
        for z in (-3.0, -0.5, 0.0, 2.0):
            right, wrong = 1 / (1 + math.exp(-z)), 1 / (1 + math.exp(z))
            difference = torch.tensor(z, dtype=torch.float64, requires_grad=True)
            value = implementation(difference, epsilon)
            value.backward()
            assert_same(value.detach(), (1 - epsilon) * math.log(right) + epsilon * math.log(wrong))
            assert_same(difference.grad, (1 - epsilon) * wrong - epsilon * right)


def naive(difference, label_smoothing=0.0):
    return difference.sigmoid().log()


@holds_only_for(bradley_terry, naive=naive)
def test_far_out_it_is_a_straight_line(implementation):
    """log σ(z) = z − log(1 + e^z): at z = −1000 it is −1000 with gradient 1, at 1000 it is 0 with gradient 0."""
    difference = torch.tensor([-1000.0, 1000.0], requires_grad=True)
    value = implementation(difference)
    value.sum().backward()
    assert value.tolist() == [-1000.0, 0.0]
    assert difference.grad.tolist() == [1.0, 0.0]


def test_smoothing_is_content_with_a_finite_difference():
    """dJ/dz = 0 at z = log((1 − ε)/ε)."""
    difference = torch.tensor(math.log(0.9 / 0.1), dtype=torch.float64, requires_grad=True)
    bradley_terry(difference, 0.1).backward()
    assert abs(float(difference.grad)) < 1e-15


def without_beta(chosen, rejected, beta, label_smoothing=0.0):
    return bradley_terry(chosen - rejected, label_smoothing)


def swapped(chosen, rejected, beta, label_smoothing=0.0):
    return dpo_objective(rejected, chosen, beta, label_smoothing)


@holds_only_for(dpo_objective, without_beta=without_beta, swapped=swapped)
def test_dpo_by_hand(implementation):
    """β (m⁺ − m⁻) = 0.5 · 2 = 1: J = log σ(1), and the gradient is ±β ς with ς = σ(−1)."""
    chosen = torch.tensor([1.2], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([-0.8], dtype=torch.float64, requires_grad=True)
    value = implementation(chosen, rejected, 0.5)
    value.sum().backward()
    varsigma = 1 / (1 + math.e)
    assert_same(value.detach(), [math.log(1 - varsigma)])
    assert_same(chosen.grad, [0.5 * varsigma])
    assert_same(rejected.grad, [-0.5 * varsigma])


@pytest.mark.parametrize("epsilon", [0.0, 0.3])
def test_at_the_reference_it_is_minus_log_two_whatever_beta(epsilon):
    zero = torch.zeros(3, dtype=torch.float64)
    for beta in (0.1, 5.0):
        assert_same(dpo_objective(zero, zero, beta, epsilon), [-math.log(2)] * 3)

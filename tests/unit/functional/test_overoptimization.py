"""The laws of over-optimisation and ensembles of reward models, against numbers by hand."""

import math

import pytest
import torch

from rl_lightning.functional import Law, combine, fit_law
from tests.checks import assert_same, holds_only_for

D = torch.tensor([0.0, 0.5, 1.0, 2.0, 3.0], dtype=torch.float64)


def by_hand(d: float, kind: str) -> float:
    """α = 2, β = 1/2."""
    return d * (2 - 0.5 * d) if kind == "quadratic" else d * (2 - 0.5 * math.log(d)) if d else 0.0


class Crossed(Law):
    """Has the two laws the wrong way round."""

    def __call__(self, distance):
        return Law("log" if self.kind == "quadratic" else "quadratic", self.alpha, self.beta)(distance)


@holds_only_for(Law, crossed=Crossed)
def test_a_law_is_its_formula(law):
    for kind in ("quadratic", "log"):
        assert_same(law(kind, 2.0, 0.5)(D), [by_hand(d, kind) for d in D.tolist()])


@pytest.mark.parametrize("kind", ["quadratic", "log"])
def test_a_fit_finds_the_law_that_made_the_points(kind):
    points = torch.tensor([by_hand(d, kind) for d in D.tolist()], dtype=torch.float64)
    law = fit_law(D, points, kind)
    assert_same(torch.tensor([law.alpha, law.beta]), torch.tensor([2.0, 0.5]))
    assert law.r2(D, points) == pytest.approx(1)
    other = fit_law(D, points, "log" if kind == "quadratic" else "quadratic")
    assert other.r2(D, points) < 0.9999
    assert Law(kind, 0.0, 0.0).r2(D, points) < 0  # the mean of the points is closer than 0


@pytest.mark.parametrize(("kind", "expected"), [("quadratic", 2.0), ("log", math.exp(3))])
def test_the_peak_is_where_the_derivative_vanishes(kind, expected):
    law = Law(kind, 2.0, 0.5)
    assert law.peak == pytest.approx(expected)
    at = torch.tensor(law.peak, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(law(at), at)
    assert abs(float(slope)) < 1e-9
    assert law(at) > max(law(at * 0.9), law(at * 1.1))


def test_a_law_without_a_peak_says_so():
    assert Law("quadratic", 1.0, 0.0).peak == math.inf
    assert Law("quadratic", -1.0, 1.0).peak == 0


def test_points_that_leave_the_law_open_are_refused():
    with pytest.raises(ValueError, match="two different distances"):
        fit_law(torch.tensor([0.0, 1.0, 1.0]), torch.zeros(3), "log")
    with pytest.raises(ValueError, match="unknown kind 'cubic'"):
        fit_law(D, D, "cubic")


MEMBERS = torch.tensor([[1.0, 0.0, 2.0], [3.0, 0.0, float("nan")]])


def of_a_sample(members, how="mean", coef=1.0):
    """Divides the variance by k − 1."""
    return members.mean(0) - coef * members.var(0) if how == "mean_minus_var" else combine(members, how, coef)


@holds_only_for(combine, of_a_sample=of_a_sample)
def test_an_ensemble_by_hand(combined):
    two = MEMBERS[:, :2]
    assert combined(two).tolist() == [2.0, 0.0]
    assert combined(two, "min").tolist() == [1.0, 0.0]
    assert combined(two, "mean_minus_var", 0.5).tolist() == [1.5, 0.0]
    assert combined(two, "mean_minus_var", 0.0).tolist() == combined(two).tolist()
    for how in ("mean", "min", "mean_minus_var"):
        assert combined(MEMBERS, how)[2].isnan()
        assert combined(MEMBERS[:1], how).tolist() == MEMBERS[0].tolist()


def test_an_unknown_combination_is_refused():
    with pytest.raises(ValueError, match="unknown combination 'median'"):
        combine(MEMBERS, "median")

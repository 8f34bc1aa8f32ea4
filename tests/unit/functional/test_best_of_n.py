"""Best of n from N samples, against every subset and against a policy whose responses can be listed."""

import itertools
import math

import pytest
import torch

from rl_lightning.functional import best_of_n_kl, best_of_n_kl_exact, best_of_n_mean
from tests.checks import assert_same, holds_only_for

SCORES = {
    "different": [0.3, -1.0, 2.5, 0.1, 0.7, 9.0, -4.0, 1.0],
    "ties": [1.0, 0.0, 1.0, 1.0, 0.0, 2.0, 2.0, -1.0],
    "all equal": [0.5] * 8,
}
VALUES = torch.tensor([1.0, 0.0, -2.0, 3.0, 0.5, 0.25, -1.0, 8.0], dtype=torch.float64)


def over_all_subsets(scores: list[float], values: list[float], n: int) -> float:
    """Take the mean over every subset, and over the best of each subset."""
    total = count = 0.0
    for subset in itertools.combinations(range(len(scores)), n):
        best = max(scores[place] for place in subset)
        worth = [values[place] for place in subset if scores[place] == best]
        total, count = total + sum(worth) / len(worth), count + 1
    return total / count


def first_of_ties(scores, values, n):
    """Gives tied responses the chances of their places, so what comes last is preferred."""
    shifted = scores + 1e-9 * torch.arange(scores.shape[-1], dtype=torch.float64)
    return best_of_n_mean(shifted, values, n)


def with_replacement(scores, values, n):
    """The plug-in estimate, which is biased: it draws a response twice."""
    _, inverse, counts = scores.unique(return_inverse=True, return_counts=True)
    share = counts.double() / counts.sum()
    top = share.cumsum(0)
    chance = (top**n - (top - share) ** n)[inverse] / counts[inverse]
    return (chance * values).sum(-1)


@holds_only_for(best_of_n_mean, first_of_ties=first_of_ties, with_replacement=with_replacement)
def test_it_is_the_mean_over_all_subsets(estimate):
    for scores in SCORES.values():
        for n in range(1, 9):
            expected = over_all_subsets(scores, VALUES.tolist(), n)
            assert_same(estimate(torch.tensor(scores, dtype=torch.float64), VALUES, n), expected)


def test_it_goes_row_by_row_and_keeps_the_shape():
    scores = torch.tensor(list(SCORES.values())).view(3, 1, 8)
    rows = best_of_n_mean(scores, VALUES.expand(3, 1, 8), 3)
    assert rows.shape == (3, 1)
    assert_same(rows[:, 0], torch.stack([best_of_n_mean(row[0], VALUES, 3) for row in scores]))


def test_only_the_order_of_the_scores_counts():
    scores = torch.tensor(SCORES["ties"], dtype=torch.float64)
    for n in (2, 5):
        assert torch.equal(best_of_n_mean(scores, VALUES, n), best_of_n_mean(3 * scores.exp(), VALUES, n))
        assert not torch.equal(best_of_n_mean(scores, VALUES, n), best_of_n_mean(-scores, VALUES, n))


POLICY = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
ITS_SCORES, ITS_VALUES = torch.tensor([0.0, 1.0, 1.0, 2.0]), torch.tensor([1.0, 0.0, 2.0, -1.0], dtype=torch.float64)


def best_of_a_policy(n: int) -> float:
    """Go through every tuple of n responses of a policy with four."""
    value = 0.0
    for drawn in itertools.product(range(4), repeat=n):
        best = max(float(ITS_SCORES[one]) for one in drawn)
        worth = [float(ITS_VALUES[one]) for one in drawn if float(ITS_SCORES[one]) == best]
        value += math.prod(float(POLICY[one]) for one in drawn) * sum(worth) / len(worth)
    return value


@pytest.mark.parametrize("n", [1, 2, 4])
def test_its_mean_over_samples_is_that_of_the_policy(n):
    drawn = torch.multinomial(POLICY.expand(4000, 4), 16, True, generator=torch.Generator().manual_seed(0))
    estimates = best_of_n_mean(ITS_SCORES[drawn], ITS_VALUES[drawn], n)
    error = float(estimates.std()) / 4000**0.5
    assert abs(float(estimates.mean()) - best_of_a_policy(n)) < 4 * error
    assert n == 1 or abs(best_of_a_policy(1) - best_of_a_policy(n)) > 8 * error  # another n would be noticed


def from_products(n: int) -> float:
    """Enumerate the distribution of the best of n by its score, where equal scores are one outcome."""
    levels = [float(POLICY[level == ITS_SCORES].sum()) for level in (0.0, 1.0, 2.0)]
    chances = [0.0] * 3
    for drawn in itertools.product(range(3), repeat=n):
        chances[max(drawn)] += math.prod(levels[one] for one in drawn)
    return sum(chance * math.log(chance / level) for chance, level in zip(chances, levels, strict=True))


def without_ties(scores, n):
    """Takes every response for an outcome of its own."""
    return best_of_n_kl_exact(torch.arange(len(scores)), n)


@holds_only_for(best_of_n_kl_exact, without_ties=without_ties)
def test_the_divergence_is_that_of_the_enumerated_distribution(divergence):
    drawn = torch.arange(4).repeat_interleave((POLICY * 20).round().long())  # each response as often as the policy says
    assert abs(float(divergence(ITS_SCORES[drawn], 1))) < 1e-15
    for n in (2, 4, 6):
        assert_same(divergence(ITS_SCORES[drawn], n), from_products(n))


def test_the_divergence_has_the_formula_for_its_limit_and_bound():
    scores = torch.arange(20_000)
    for n in (2, 8, 64):
        assert abs(float(best_of_n_kl_exact(scores, n)) - best_of_n_kl(n)) < 2e-3
    drawn = torch.arange(4).repeat_interleave((POLICY * 20).round().long())
    exact = [float(best_of_n_kl_exact(drawn, n)) for n in (2, 4, 16, 256)]
    assert [round(one, 4) for one in exact] == [0.141, 0.5659, 1.702, 2.9957]
    assert all(one <= best_of_n_kl(n) for one, n in zip(exact, (2, 4, 16, 256), strict=True))


def test_an_impossible_n_is_refused():
    for n in (0, 9):
        with pytest.raises(ValueError, match="from 1 to the number of responses, 8"):
            best_of_n_mean(VALUES, VALUES, n)
    with pytest.raises(ValueError, match="at least 1"):
        best_of_n_kl_exact(VALUES, 0)

"""Numbers about training steps and evaluations."""

import itertools
import math

import pytest
import torch

from rl_lightning.algorithms.base import Observations
from rl_lightning.algorithms.metrics import PassAtK, RolloutMean, pass_at_k, sampling_metrics
from tests.checks import assert_same, holds_only_for
from tests.support import random_rollout


def by_enumeration(samples, correct, k):
    """The share of all subsets of k samples that hold a correct one."""
    subsets = list(itertools.combinations(range(samples), k))
    return sum(min(subset) < correct for subset in subsets) / len(subsets)


def with_replacement(samples, correct, k):
    """The plug-in estimate, biased: it draws one sample more than once."""
    return 1 - (1 - correct / samples) ** k


def any_of_all(samples, correct, k):
    return float(correct > 0)


def of_the_first_k(samples, correct, k):
    return min(1.0, correct / samples * k)


@holds_only_for(pass_at_k, with_replacement=with_replacement, any_of_all=any_of_all, of_the_first_k=of_the_first_k)
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample(implementation):
    for samples in range(1, 9):
        for correct in range(samples + 1):
            for k in range(1, samples + 1):
                actual = implementation(samples=samples, correct=correct, k=k)
                assert abs(actual - by_enumeration(samples, correct, k)) < 1e-12, (samples, correct, k)


def test_pass_at_k_stays_exact_for_many_samples():
    assert pass_at_k(1000, 1, 500) == 0.5
    assert pass_at_k(1000, 0, 1000) == 0.0 and pass_at_k(1000, 1, 1000) == 1.0


@pytest.mark.parametrize("k", [0, 5])
def test_pass_at_k_of_more_samples_than_there_are_is_refused(k):
    with pytest.raises(ValueError, match=f"pass@{k}"):
        pass_at_k(4, 2, k)


# ----------------------------------------------------------------------------------------------------- observations


def last_microbatch(parts):
    observations = Observations()
    observations.add(*parts[-1])
    observations.add_to_loss(torch.tensor(0.0))
    return observations.flush(lambda totals: totals)["x"]


def mean_of_means(parts):
    return sum(float(values["x"][mask].mean()) for values, mask in parts if mask.any()) / 3


def mean_over_padding(parts):
    return float(torch.cat([values["x"].flatten() for values, _ in parts]).nanmean())


def over_tokens(parts):
    observations = Observations()
    for values, mask in parts:
        observations.add(values, mask)
    observations.add_to_loss(torch.tensor(0.0))
    return observations.flush(lambda totals: totals)["x"]


@holds_only_for(
    over_tokens, last_microbatch=last_microbatch, mean_of_means=mean_of_means, mean_over_padding=mean_over_padding
)
def test_observations_are_means_over_the_tokens_of_all_microbatches(implementation):
    """Microbatches of 3, 0, 1 and 2 tokens: (1 + 2 + 3 + 10 + 20 + 30) / 6 = 11."""
    nan = torch.nan
    parts = [
        ({"x": torch.tensor([[1.0, 2.0], [3.0, nan]])}, torch.tensor([[True, True], [True, False]])),
        ({"x": torch.tensor([[5.0, nan]])}, torch.tensor([[False, False]])),
        ({"x": torch.tensor([[10.0, 7.0, nan]])}, torch.tensor([[True, False, False]])),
        ({"x": torch.tensor([[20.0], [30.0], [nan]])}, torch.tensor([[True], [True], [False]])),
    ]
    assert abs(implementation(parts) - 11.0) < 1e-12


def test_a_step_has_the_sum_of_its_losses_and_leaves_nothing_to_the_next():
    observations = Observations()
    mask = torch.ones(1, 2, dtype=torch.bool)
    observations.keep({"rollout/reward_mean": 0.25})
    for loss in (0.5, 0.25):
        observations.add({"x": torch.tensor([[1.0, 3.0]], requires_grad=True)}, mask)
        observations.add_to_loss(torch.tensor(loss, requires_grad=True))
    assert observations.flush(lambda totals: totals) == {"train/loss": 0.75, "x": 2.0, "rollout/reward_mean": 0.25}
    assert observations.latest["x"].tolist() == [1.0, 3.0]
    observations.add({"y": torch.tensor([[4.0, 4.0]])}, mask)
    observations.add_to_loss(torch.tensor(-1.0))
    assert observations.flush(lambda totals: totals) == {"train/loss": -1.0, "y": 4.0}


def test_ranks_are_weighted_by_their_tokens():
    """This rank has 1 token of value 0 and loss 1; the other 3 tokens of value 8 and loss 2: mean 24 / 4."""
    observations = Observations()
    observations.add({"x": torch.tensor([[0.0]])}, torch.ones(1, 1, dtype=torch.bool))
    observations.add_to_loss(torch.tensor(1.0))
    other = torch.tensor([2.0, 24.0, 3.0], dtype=torch.float64)
    assert observations.flush(lambda totals: totals + other) == {"train/loss": 3.0, "x": 6.0}


def test_the_effective_sample_size_is_that_of_the_importance_weights():
    """Ratios 1 and 3: (4/2)² / (10/2) = 0.8 of the tokens."""
    ratio = torch.tensor([[1.0, 3.0, 100.0]])
    observations = Observations()
    observations.add({"policy/ratio_mean": ratio, "policy/ratio_square": ratio.square()}, ratio < 50)
    observations.add_to_loss(torch.tensor(0.0))
    flushed = observations.flush(lambda totals: totals)
    assert flushed == {"train/loss": 0.0, "policy/ratio_mean": 2.0, "policy/ess": 0.8}


# ------------------------------------------------------------------------------------------------------- evaluation


def rollout_of(correct, rewards, lengths, truncated):
    """Return two prompts with four samples each, whose rows do not stand group by group."""
    rollout = random_rollout(groups=2, group_size=4)
    rollout.group_ids = torch.tensor([5, 9, 5, 9, 5, 9, 5, 9])
    rollout.correct = torch.tensor(correct, dtype=torch.bool)
    rollout.rewards = torch.tensor(rewards)
    rollout.raw_rewards = rollout.rewards.clone()
    columns = torch.arange(rollout.response_length)
    rollout.attention_mask[:, -rollout.response_length :] = columns < torch.tensor(lengths)[:, None]
    rollout.truncated = torch.tensor(truncated, dtype=torch.bool)
    return rollout


def test_evaluation_metrics_by_hand():
    """Two of four samples of prompt 5 are correct and one of three of prompt 9; a third prompt's three are all wrong."""
    nan = torch.nan
    first = rollout_of(
        correct=[1, 0, 1, 1, 0, 0, 0, 0],
        rewards=[1.0, 0.0, 1.0, 1.0, 0.5, nan, 0.0, 0.0],
        lengths=[1, 2, 3, 4, 5, 6, 7, 8],
        truncated=[0, 0, 0, 0, 0, 0, 1, 1],
    )
    first.reward_components = {"one": first.rewards, "two": first.rewards * 2 + 1}
    second = first.select(torch.tensor([4, 5, 6, 7]))
    second.group_ids = torch.zeros(4, dtype=torch.long)
    metrics = sampling_metrics(4, ("one", "two"), "val/")
    metrics.update(first)
    metrics.update(second)
    values = {name: float(value) for name, value in metrics.compute().items()}
    expected = {
        "val/pass@1": (2 / 4 + 1 / 3 + 0) / 3,
        "val/pass@2": (5 / 6 + 2 / 3 + 0) / 3,
        "val/pass@4": 1.0,  # the other two have three scored samples, which say nothing of four
        "val/failed_fraction": 2 / 12,
        "val/reward_mean": (3.5 + 0.5) / (7 + 3),
        "val/reward/one": (3.5 + 0.5) / (7 + 3),
        "val/reward/two": 2 * (3.5 + 0.5) / (7 + 3) + 1,
        "val/length_mean": (36 + 26) / 12,
        "val/truncated_fraction": 4 / 12,
    }
    assert values.keys() == expected.keys()
    for name, value in expected.items():
        assert math.isclose(values[name], value, rel_tol=1e-6), name


@pytest.mark.parametrize(("samples", "ks"), [(1, {1}), (2, {1, 2}), (6, {1, 2, 4, 6}), (8, {1, 2, 4, 8})])
def test_pass_at_powers_of_two_and_at_all_samples(samples, ks):
    names = {name for name in sampling_metrics(samples, (), "test/") if "pass@" in name}
    assert names == {f"test/pass@{k}" for k in ks}


def test_one_reward_has_no_mean_of_its_own():
    assert not [name for name in sampling_metrics(4, ("one",), "val/") if "reward/" in name]


def test_a_mean_leaves_out_what_failed():
    rollout = random_rollout(groups=1, group_size=4)
    metric = RolloutMean(lambda rollout: rollout.rewards)
    for rewards in ([1.0, torch.nan, 0.0, 0.5], [torch.nan] * 4, [0.5, 0.5, 0.5, 2.5]):
        rollout.rewards = torch.tensor(rewards)
        metric.update(rollout)
    assert_same(metric.compute(), torch.tensor(5.5 / 7))
    metric.reset()
    metric.update(random_rollout(groups=1, group_size=4))
    assert not metric.compute().isnan()


def test_a_mean_over_nothing_is_nan():
    rollout = random_rollout(groups=1, group_size=4)
    rollout.rewards = torch.full((4,), torch.nan)
    metric = RolloutMean(lambda rollout: rollout.rewards)
    metric.update(rollout)
    assert metric.compute().isnan()


def test_counts_over_ranks_are_summed():
    metric = PassAtK(1)
    assert {metric._reductions[name].__name__ for name in ("total", "prompts")} == {"dim_zero_sum"}

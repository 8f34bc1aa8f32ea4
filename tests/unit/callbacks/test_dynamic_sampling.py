"""Which groups are kept, which settings are refused, what is filtered, and how groups are dealt out."""

from types import SimpleNamespace

import pytest
import torch

from rl_lightning.algorithms import DAPO, SFT
from rl_lightning.callbacks import DynamicSampling, GroupNormalize, OverlongFilter, OverlongShaping, RolloutCallback
from rl_lightning.data import ChainSum, DemonstrationDataModule, RolloutDataModule
from rl_lightning.data.refill import blank, spread
from rl_lightning.errors import UserError
from rl_lightning.generation import Sampling
from tests.checks import holds_only_for
from tests.support import random_rollout, trainer

ALONE = SimpleNamespace(world_size=1)


class BySpread(DynamicSampling):
    """Keeps what has different rewards."""

    def keep_groups(self, trainer, module, rollout):
        rewards = rollout.rewards.view(-1, 4)
        return (rewards.max(1).values > rewards.min(1).values).repeat_interleave(4)


class FailedIsWrong(DynamicSampling):
    """Takes a response without a reward for a wrong one."""

    def keep_groups(self, trainer, module, rollout):
        correct = (rollout.correct & rollout.scored).view(-1, 4).sum(1)
        return ((correct > 0) & (correct < 4)).repeat_interleave(4)


class NotAllWrong(DynamicSampling):
    """Drops only what has no right answer."""

    def keep_groups(self, trainer, module, rollout):
        return rollout.votes()[1] > 0


def judged_rollout():
    """Six groups of four: all right, all right but two too long, mixed, one right the rest failed, all wrong, all failed."""
    nan = torch.nan
    rollout = random_rollout(groups=6)
    raw = [[1, 1, 1, 1], [1, 1, 1, 1], [1, -1, -1, 1], [1, nan, nan, nan], [-1, -1, -1, -1], [nan] * 4]
    rollout.raw_rewards = torch.tensor(raw).flatten().double()
    rollout.correct = rollout.raw_rewards >= 0.5
    rollout.rewards = rollout.raw_rewards.clone()
    rollout.rewards[4:6] -= 0.5
    return rollout


@holds_only_for(DynamicSampling, by_spread=BySpread, failed_is_wrong=FailedIsWrong, not_all_wrong=NotAllWrong)
def test_a_group_is_kept_for_its_right_and_wrong_answers_only(implementation):
    kept = implementation().keep_groups(ALONE, None, judged_rollout())
    assert kept.view(6, 4).all(1).tolist() == [False, False, True, False, False, False]
    assert torch.equal(kept.view(6, 4).all(1), kept.view(6, 4).any(1))


def test_a_penalty_on_length_keeps_no_group():
    """All right, one of them over the ramp: there is spread in the rewards and yet nothing to learn about the task."""
    rollout = random_rollout(groups=1)
    rollout.raw_rewards = torch.ones(4, dtype=torch.float64)
    rollout.rewards, rollout.correct = rollout.raw_rewards.clone(), torch.ones(4, dtype=torch.bool)
    shaping = OverlongShaping(cache_length=8)
    shaping.check_settings(SimpleNamespace(datamodule=SimpleNamespace(sampling=SimpleNamespace(max_new_tokens=9))))
    shaping.on_rollout_rewards(ALONE, None, rollout)
    assert rollout.rewards.max() > rollout.rewards.min()
    assert not DynamicSampling().keep_groups(ALONE, None, rollout).any()


# ------------------------------------------------------------------------------------------------------------ settings


@pytest.mark.parametrize("name", ["max_chunks", "prompts_per_chunk"])
def test_sizes_below_one_are_refused(name):
    with pytest.raises(UserError, match=f"DynamicSampling: {name} must be at least 1, not 0"):
        DynamicSampling(**{name: 0})


@pytest.mark.parametrize(
    ("settings", "group_size", "ranks", "said"),
    [
        ({}, 1, 1, "group_size=1 must be at least 2"),
        ({"prompts_per_chunk": 5}, 2, 2, "prompts_per_chunk=5 must be a multiple of the 2 ranks"),
        ({"prompts_per_chunk": 2, "max_chunks": 3}, 2, 1, "= 6 can never fill a rollout: it must be at least prompts_per_rollout=8"),
    ],
)  # fmt: skip
def test_sizes_that_cannot_work_are_refused(settings, group_size, ranks, said):
    run = SimpleNamespace(
        strategy=SimpleNamespace(data_parallel_size=ranks), world_size=ranks,
        datamodule=SimpleNamespace(group_size=group_size, prompts_per_rollout=8),
    )  # fmt: skip
    with pytest.raises(UserError, match=said):
        DynamicSampling(**settings).check_settings(run)
    run.datamodule.group_size, run.strategy.data_parallel_size = 2, 1
    DynamicSampling().check_settings(run)


def fit(policy, directory, callbacks):
    data = RolloutDataModule(
        prompts=ChainSum(train_size=8, val_size=2),
        sampling=Sampling(max_new_tokens=4),
        prompts_per_rollout=4,
        group_size=2,
    )
    run = trainer(directory, callbacks)
    run.fit(DAPO(policy=policy), datamodule=data)
    return run


class DropRow(RolloutCallback):
    """Drops one member of a group."""

    def keep_groups(self, trainer, module, rollout):
        return torch.arange(len(rollout)) > 0


@pytest.mark.parametrize(
    ("callbacks", "said"),
    [
        ([DynamicSampling(), DynamicSampling(max_chunks=3)], "keep one DynamicSampling"),
        ([DropRow()], "DropRow.keep_groups must return one truth value for all rows of a group"),
    ],
)
def test_a_run_with_settings_that_cannot_work_is_refused(callbacks, said, tiny_policy, tmp_path):
    with pytest.raises(UserError, match=said):
        fit(tiny_policy, tmp_path, callbacks)


def test_the_run_card_tells_of_chunks(tiny_policy, tmp_path):
    settings = {"max_chunks": 3, "prompts_per_chunk": 2}
    lines = [
        fit(tiny_policy, tmp_path, callbacks).datamodule.describe()["rollout"]
        for callbacks in ([], [DynamicSampling(**settings)])
    ]
    assert lines[1] == lines[0] + ", in up to 3 chunks of 2 prompts until enough groups are kept"


def test_demonstrations_have_no_groups_to_drop(tiny_policy, tmp_path):
    data = DemonstrationDataModule(prompts=ChainSum(train_size=8, val_size=2), batch_size=4)
    with pytest.raises(UserError, match="DynamicSampling acts on rollouts"):
        trainer(tmp_path, [DynamicSampling()], online=False).fit(SFT(tiny_policy), datamodule=data)


# ------------------------------------------------------------------------------------------------------ OverlongFilter


def cut_rollout():
    rollout = random_rollout(groups=2)
    rollout.truncated = torch.tensor([True, False, False, False, False, True, True, False])
    rollout.raw_rewards[1] = rollout.rewards[1] = torch.nan
    rollout.response_mask[1] = False
    rollout.advantages = None
    return rollout


def filtered(order):
    rollout = cut_rollout()
    for callback in order:
        callback.on_rollout_advantages(ALONE, None, rollout)
    return rollout


def test_truncated_responses_count_nowhere_but_in_the_mean():
    expected = cut_rollout()
    GroupNormalize().on_rollout_advantages(ALONE, None, expected)
    for order in ([GroupNormalize(), OverlongFilter()], [OverlongFilter(), GroupNormalize()]):
        rollout = filtered(order)
        assert not rollout.response_mask[rollout.truncated].any() and not rollout.advantages[rollout.truncated].any()
        others = ~rollout.truncated
        assert torch.equal(rollout.response_mask[others], expected.response_mask[others])
        assert torch.equal(rollout.advantages[others], expected.advantages[others])
        assert rollout.metrics["rollout/filtered_fraction"] == pytest.approx(3 / 7)
    assert expected.advantages[expected.truncated].abs().sum() > 0, "there is nothing to filter here"


# ------------------------------------------------------------------------------------------------------------- dealing


def as_it_comes(order, counts, steps):
    return order


def first_steps_first(order, counts, steps):
    return torch.cat([order[counts[order]], order[~counts[order]]])


@holds_only_for(spread, as_it_comes=as_it_comes, first_steps_first=first_steps_first)
def test_what_counts_is_spread_evenly_over_the_steps(implementation):
    generator = torch.Generator().manual_seed(4)
    for _ in range(50):
        order = torch.randperm(12, generator=generator)
        counts = torch.rand(12, generator=generator) < 0.4
        dealt = implementation(order, counts, 4)
        assert sorted(dealt.tolist()) == list(range(12))
        shares = counts[dealt].view(4, 3).sum(1)
        assert int(shares.max() - shares.min()) <= 1


def test_where_everything_counts_the_order_stays():
    order = torch.randperm(12)
    assert torch.equal(spread(order, torch.ones(12, dtype=torch.bool), 4), order)


def test_blank_rows_have_no_reward_and_no_token():
    rollout = random_rollout(groups=1)
    empty = blank(rollout)
    assert not empty.response_mask.any() and not empty.scored.any() and empty.rewards.isnan().all()
    assert rollout.response_mask.any() and rollout.scored.all()

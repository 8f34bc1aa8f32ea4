"""What rewards look like within groups is logged, over chunks and ranks, and changes nothing."""

import torch
from torchmetrics.functional import spearman_corrcoef

from rl_lightning.callbacks import GroupShape
from rl_lightning.measures import merged
from tests.support import random_rollout


def looked_at(rewards, judged=True):
    rollout = random_rollout(groups=2, group_size=4)
    rollout.rewards, rollout.raw_rewards, rollout.metrics = rewards, rewards, {}
    rollout.reward_components = {"right": rewards} if judged else {}
    GroupShape().on_rollout_rewards(None, None, rollout)
    assert torch.equal(rollout.rewards.nan_to_num(-1), rewards.nan_to_num(-1))
    return rollout


def test_parts_are_means_over_prompts_and_failed_rewards_are_left_out():
    first = looked_at(torch.tensor([1.0, 0.0, torch.nan, 2.0, 5.0, 5.0, 5.0, 5.0]))
    lengths = first.policy_lengths[torch.tensor([0, 1, 3])]
    expected = spearman_corrcoef(torch.tensor([1.0, 0.0, 2.0]), lengths.float())
    assert expected.isfinite()  # or the case says nothing
    torch.testing.assert_close(torch.tensor(float(first.metrics["rollout/length_correlation"])), expected)
    assert first.metrics["rollout/group_std"] == 0.5  # 1 and 0
    second = looked_at(torch.tensor([1.0, 2.0, 3.0, 4.0, 0.0, 0.0, 0.0, 4.0]))
    both = merged([first.metrics, second.metrics])["rollout/group_std"]
    assert abs(float(both) - (1 + (5 / 3) ** 0.5 + 2) / 4) < 1e-12


def test_where_nothing_judges_answers_nothing_is_logged():
    assert looked_at(torch.zeros(8), judged=False).metrics == {}
    assert set(looked_at(torch.zeros(8)).metrics) == {"rollout/group_std", "rollout/length_correlation"}

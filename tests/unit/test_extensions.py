"""The four extensions in examples/extensions do what they say, and run from their overlays."""

import itertools
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from examples.extensions.drop_groups import MinimumSpread
from examples.extensions.leave_one_out import LeaveOneOut
from examples.extensions.prompts import Sums
from examples.extensions.sequence_ratio import GSPO
from rl_lightning import GRPO
from rl_lightning.callbacks import GroupNormalize, RolloutCallback
from rl_lightning.cli import run
from tests.checks import assert_same, cases, holds_only_for
from tests.support import GROUP, random_rollout

ROOT = Path(__file__).parents[2]


@holds_only_for(LeaveOneOut, grpo=GroupNormalize, dr_grpo=lambda: GroupNormalize(scale="none"))
def test_a_response_is_compared_with_the_others(make):
    rollout = random_rollout()
    rollout.raw_rewards[1] = torch.nan  # a failed reward counts nowhere
    make().on_rollout_advantages(SimpleNamespace(world_size=1), None, rollout)
    kept = [0, 2, 3]
    for row in kept:
        others = torch.stack([rollout.rewards[one] for one in kept if one != row]).mean()
        assert_same(rollout.advantages[row, 0], rollout.rewards[row] - others)
    assert_same(rollout.advantages[1], torch.zeros(rollout.response_length))


@holds_only_for(GSPO.ratio, token=GRPO.ratio)
def test_the_ratio_is_the_geometric_mean_of_the_tokens(ratio):
    batch = random_rollout().microbatch(torch.arange(3))
    logprobs = batch.old_logprobs + 0.1 * torch.rand_like(batch.old_logprobs)
    found = ratio(GSPO(), batch, logprobs)
    for row in range(3):
        length = int(batch.response_mask[row].sum())
        tokens = (logprobs - batch.old_logprobs)[row, :length].exp()
        assert_same(found[row, :length], (tokens.prod() ** (1 / length)).expand(length))


@holds_only_for(
    MinimumSpread, nothing=lambda spread: RolloutCallback(), all_but_equal=lambda spread: MinimumSpread(1e-9)
)
def test_groups_with_similar_rewards_are_dropped(make):
    rollout = random_rollout(groups=3)
    rollout.rewards = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.0, 1.0, 0.5, torch.nan, 0.4, 0.4, 0.4, 0.4])
    data = SimpleNamespace(group_size=GROUP)
    kept = make(spread=0.5).keep_groups(SimpleNamespace(datamodule=data), None, rollout)
    assert kept is not None
    assert kept.tolist() == [False] * 4 + [True] * 4 + [False] * 4


def test_the_splits_of_a_source_are_disjoint_and_the_same_every_time():
    splits = [[example.prompt for example in Sums().load(split)] for split in ("train", "val", "test")]
    assert len(set(itertools.chain(*splits))) == sum(map(len, splits)) == 81
    assert splits[0] == [example.prompt for example in Sums().load("train")]


OVERLAYS = ["leave_one_out", "sequence_ratio", "drop_groups", "prompts"]


# What the others compute is tested above.
@pytest.mark.parametrize("name", cases(OVERLAYS, soon=lambda name: name == "prompts"))
def test_an_overlay_runs_a_rollout(name, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.argv", ["rl_lightning"])
    small = ["--data.prompts_per_rollout=4", "--trainer.max_epochs=1", "--trainer.limit_val_batches=0"]
    quiet = ["--trainer.logger=false", "--trainer.enable_progress_bar=false", f"--trainer.default_root_dir={tmp_path}"]
    configs = ["--config=configs/grpo.yaml", f"--config=examples/extensions/{name}.yaml"]
    few = [] if name == "prompts" else ["--data.prompts.train_size=64"]
    cli = run(["fit", *configs, *small, *quiet, *few])
    assert cli.trainer.global_step == 1

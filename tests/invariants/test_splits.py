"""One gradient, however the optimizer batch is split into microbatches and ranks."""

import json
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch

from rl_lightning.algorithms import GRPO
from rl_lightning.functional import BatchTotals, Reduction, batch_totals, kl_k3
from rl_lightning.models import LoadOptions
from tests.checks import gradient_difference
from tests.support import StoredRollouts, gradients, random_rollout

REDUCTIONS = get_args(Reduction)
RELATIVE = [("float64", 1e-12), ("float32", 1e-6)]


def module(policy, reduction, dtype="float64"):
    return GRPO(policy=policy, load=LoadOptions(dtype=dtype), reduction=reduction, kl_coef=0.5, clip_low=0.3)


def step_gradient(policy, tmp_path, reduction, dtype="float64", microbatch_size=None, minibatch_size=None):
    rollout = random_rollout(dtype=getattr(torch, dtype))
    data = StoredRollouts(rollout, group_size=4, minibatch_size=minibatch_size, microbatch_size=microbatch_size)
    return gradients(module(policy, reduction, dtype), data, tmp_path)


def slow_objective(model, rollout, reduction):
    """The notebook's GRPO, response by response and token by token, each response alone and without padding."""
    per_response = []
    for i in range(len(rollout)):
        ids = rollout.input_ids[i][rollout.attention_mask[i]]
        length = int(rollout.lengths[i])
        logprobs = model(input_ids=ids[None]).logits[0].log_softmax(-1)
        tokens = []
        for t in range(length):
            position = len(ids) - length + t
            logprob = logprobs[position - 1, ids[position]]
            ratio, advantage = (logprob - rollout.old_logprobs[i, t]).exp(), rollout.advantages[i, t]
            surrogate = torch.minimum(ratio * advantage, ratio.clamp(0.7, 1.3) * advantage)
            tokens.append(surrogate - 0.5 * kl_k3(logprob, rollout.ref_logprobs[i, t]))
        per_response.append(torch.stack(tokens))
    groups = [per_response[g : g + 4] for g in range(0, len(rollout), 4)]
    return {
        "seq_mean": lambda: torch.stack([tokens.mean() for tokens in per_response]).mean(),
        "group_token_mean": lambda: torch.stack([torch.cat(group).mean() for group in groups]).mean(),
        "token_mean": lambda: torch.cat(per_response).mean(),
        "seq_sum": lambda: torch.stack([tokens.sum() for tokens in per_response]).mean(),
        "constant": lambda: torch.stack([tokens.sum() / 32 for tokens in per_response]).mean(),
    }[reduction]()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_gradient_is_that_of_a_slow_loop(tiny_policy, tmp_path, reduction):
    policy = module(tiny_policy, reduction).policy_files.load()
    (-slow_objective(policy, random_rollout(), reduction)).backward()
    (step,) = step_gradient(tiny_policy, tmp_path, reduction)
    assert gradient_difference(step, {name: p.grad for name, p in policy.named_parameters()}) < 1e-12


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(("dtype", "relative"), RELATIVE)
def test_microbatches_do_not_change_the_gradient(tiny_policy, tmp_path, reduction, dtype, relative):
    (whole,) = step_gradient(tiny_policy, tmp_path, reduction, dtype)
    for size in (8, 4, 2, 1):
        (split,) = step_gradient(tiny_policy, tmp_path, reduction, dtype, microbatch_size=size)
        assert gradient_difference(split, whole) < relative, size


def test_a_mean_of_microbatch_means_is_another_gradient(tiny_policy, tmp_path, monkeypatch):
    """The fault that the weights are there to prevent, and the proof that these tests see it."""
    from rl_lightning.data import rollout_epoch as data

    (whole,) = step_gradient(tiny_policy, tmp_path, "token_mean")
    exact = data.step_weights

    def per_microbatch(steps, totals, reduction, max_length):
        return [
            torch.cat(
                [
                    exact([part], [BatchTotals(*batch_totals(*part))], reduction, max_length)[0] / 8
                    for part in zip(mask.split(2), groups.split(2), strict=True)
                ]
            )
            for mask, groups in steps
        ]

    monkeypatch.setattr(data, "step_weights", per_microbatch)
    (split,) = step_gradient(tiny_policy, tmp_path, "token_mean", microbatch_size=2)
    assert gradient_difference(split, whole) > 1e-3


def test_two_ranks_have_the_gradient_of_one(tiny_policy, tmp_path):
    """Two gloo processes, all reductions, two microbatches each."""
    script = Path(__file__).with_name("two_ranks.py")
    done = subprocess.run(
        [sys.executable, str(script), tiny_policy, str(tmp_path)],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for dtype, relative in RELATIVE:
        for reduction in REDUCTIONS:
            (one,) = step_gradient(tiny_policy, tmp_path, reduction, dtype)
            two = torch.load(tmp_path / f"{reduction}-{dtype}.pt", weights_only=True)
            assert gradient_difference(two, one) < relative, (reduction, dtype)
    assert json.loads((tmp_path / "logged.json").read_text())["ranks"] == 2

"""One gradient, however the optimizer batch is split into microbatches and ranks."""

from typing import get_args

import pytest
import torch

from rl_lightning.algorithms import GRPO
from rl_lightning.functional import BatchTotals, Reduction, batch_totals, kl_k3
from rl_lightning.models import LoadOptions
from tests.checks import cases, gradient_difference
from tests.support import StoredRollouts, gradients, random_rollout

REDUCTIONS = get_args(Reduction)
RELATIVE = [("float64", 1e-12), ("float32", 1e-6)]


def module(policy, reduction, dtype="float64"):
    return GRPO(policy=policy, load=LoadOptions(dtype=dtype), reduction=reduction, kl_coef=0.5, clip_low=0.3)


def step_gradient(policy, tmp_path, reduction, dtype="float64", microbatch_size=None, minibatch_size=None, **options):
    rollout = random_rollout(dtype=getattr(torch, dtype))
    data = StoredRollouts(rollout, group_size=4, minibatch_size=minibatch_size, microbatch_size=microbatch_size)
    return gradients(module(policy, reduction, dtype), data, tmp_path, **options)


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


#: Reductions in both precisions; in float32 one of them is enough for most changes.
DTYPES = cases(RELATIVE, REDUCTIONS, soon=lambda dtype, reduction: dtype == RELATIVE[0])
#: What a rank counts: its responses, or its tokens.
ON_TWO = cases(
    RELATIVE, REDUCTIONS, soon=lambda dtype, reduction: dtype == RELATIVE[0] and reduction in ("seq_mean", "token_mean")
)


@pytest.mark.parametrize(("of", "reduction"), DTYPES)
def test_microbatches_do_not_change_the_gradient(tiny_policy, tmp_path, of, reduction):
    dtype, relative = of
    (whole,) = step_gradient(tiny_policy, tmp_path, reduction, dtype)
    for size in (4, 1) if reduction == "token_mean" else (1,):
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


@pytest.mark.parametrize(("of", "reduction"), ON_TWO)
def test_two_ranks_have_the_gradient_of_one(of, reduction, ranks, tiny_policy, tmp_path):
    """Two microbatches each."""
    dtype, relative = of
    (one,) = step_gradient(tiny_policy, tmp_path, reduction, dtype)
    two = ranks(step_gradient, tiny_policy, tmp_path, reduction, dtype, microbatch_size=4, devices=2, strategy="ddp")
    for (step,) in two:
        assert gradient_difference(step, one) < relative

"""DAPO's gradient coefficient, its loss over a rollout, and what it shares with GRPO."""

import pytest
import torch

from rl_lightning.algorithms import DAPO, GRPO
from rl_lightning.errors import UserError
from rl_lightning.functional import group_normalize
from rl_lightning.models import LoadOptions
from rl_lightning.rewards.functions import final_answer
from tests.checks import assert_same, gradient_difference, holds_only_for
from tests.support import StoredRollouts, gradients, random_rollout
from tests.unit.algorithms.test_objectives import batch, coefficient

DOUBLE = LoadOptions(dtype="float64")


class ClippedAsGRPO(DAPO):
    def __init__(self, **options):
        super().__init__(**options)
        self.clip_high = self.clip_low


class ClipsSwapped(DAPO):
    def __init__(self, **options):
        super().__init__(**options)
        self.clip_low, self.clip_high = self.clip_high, self.clip_low


class Pulled(DAPO):
    def __init__(self, **options):
        super().__init__(kl_coef=0.05, **options)


@holds_only_for(DAPO, one_clip=ClippedAsGRPO, swapped=ClipsSwapped, pulled=Pulled)
def test_the_coefficient_is_the_ratio_times_the_advantage_where_neither_clip_binds(implementation):
    """GC = ρ A, and 0 for A > 0 with ρ > 1.28 or A < 0 with ρ < 0.8; no pull of a reference."""
    minibatch = batch()
    logprobs, actual = coefficient(implementation(), minibatch)
    ratio, advantages, mask = (logprobs - minibatch.old_logprobs).exp(), minibatch.advantages, minibatch.response_mask
    between = mask & (advantages > 0) & (ratio > 1.2) & (ratio < 1.28)
    assert between.any(), "no token tells the two upper clips apart"
    clipped = ((advantages > 0) & (ratio > 1.28)) | ((advantages < 0) & (ratio < 0.8))
    assert_same(actual, torch.where(mask & ~clipped, ratio * advantages, 0))


@pytest.mark.parametrize(("clip_high", "expected"), [(0.28, 1.25 * 2), (0.20, 0.0)])
def test_a_ratio_of_five_quarters_learns_only_with_the_higher_clip(clip_high, expected):
    minibatch = batch()
    minibatch.advantages = torch.full_like(minibatch.advantages, 2.0)
    logprobs = (minibatch.old_logprobs + torch.tensor(1.25, dtype=torch.float64).log()).requires_grad_()
    objective = DAPO(clip_high=clip_high).objective(minibatch, logprobs)
    objective[minibatch.response_mask].sum().backward()
    assert_same(logprobs.grad[minibatch.response_mask], torch.full((int(minibatch.response_mask.sum()),), expected))


def test_on_policy_the_clips_make_no_difference():
    minibatch = batch()
    for options in ({}, {"clip_high": 0.0, "clip_low": 0.0}):
        _, actual = coefficient(DAPO(**options), minibatch, shift=0.0)
        assert_same(actual, torch.where(minibatch.response_mask, minibatch.advantages, 0))


def near_rollout(policy):
    """Return a rollout of a policy not far from the given one, so that some ratios lie between the clips."""
    module, rollout = DAPO(policy=policy, load=DOUBLE), random_rollout()
    module.configure_model()
    with torch.no_grad():
        logprobs = module.logprobs(rollout.microbatch(torch.arange(len(rollout))))
    noise = torch.randn(logprobs.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    rollout.old_logprobs = logprobs + 0.3 * noise
    rollout.old_logprobs[:, ::3] = logprobs[:, ::3] - torch.tensor(1.25, dtype=torch.float64).log()
    return rollout


def slow_gradient(policy):
    """Eq. 8 group by group and token by token, each response alone and without padding."""
    model, rollout = DAPO(policy=policy, load=DOUBLE).policy_files.load(), near_rollout(policy)
    groups = []
    for group in range(4):
        tokens = []
        for i in range(4 * group, 4 * group + 4):
            ids, length = rollout.input_ids[i][rollout.attention_mask[i]], int(rollout.lengths[i])
            logprobs = model(input_ids=ids[None]).logits[0].log_softmax(-1)
            for t in range(length):
                place = len(ids) - length + t
                ratio = (logprobs[place - 1, ids[place]] - rollout.old_logprobs[i, t]).exp()
                advantage = rollout.advantages[i, t]
                tokens.append(torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.28) * advantage))
        groups.append(torch.stack(tokens).mean())
    (-torch.stack(groups).mean()).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def of_a_rollout(module, tmp_path):
    rollout = near_rollout(module.policy_files.policy)
    (step,) = gradients(module, StoredRollouts(rollout, group_size=4, microbatch_size=4), tmp_path)
    return step


def test_the_loss_of_a_rollout_is_equation_8(tiny_policy, tmp_path):
    expected = slow_gradient(tiny_policy)
    literal = of_a_rollout(DAPO(policy=tiny_policy, load=DOUBLE), tmp_path)
    assert gradient_difference(literal, expected) < 1e-12
    for other in ({"reduction": "token_mean"}, {"clip_high": 0.2}):
        assert (
            gradient_difference(of_a_rollout(DAPO(policy=tiny_policy, load=DOUBLE, **other), tmp_path), expected) > 1e-3
        )


@pytest.mark.parametrize("reduction", [pytest.param("group_token_mean", marks=pytest.mark.slow), "token_mean"])
def test_at_equal_clips_and_reduction_it_is_grpo_without_divergence(tiny_policy, tmp_path, reduction):
    options = {"policy": tiny_policy, "load": DOUBLE, "reduction": reduction}
    dapo = of_a_rollout(DAPO(clip_low=0.2, clip_high=0.2, **options), tmp_path)
    grpo = of_a_rollout(GRPO(clip_low=0.2, kl_coef=0.0, **options), tmp_path)
    assert all(torch.equal(dapo[name], grpo[name]) for name in grpo)
    assert gradient_difference(of_a_rollout(DAPO(**options), tmp_path), grpo) > 1e-3


def test_a_reference_is_loaded_only_when_asked_for(tiny_policy):
    for kl_coef, there in ((None, False), (0.1, True)):
        module = DAPO(policy=tiny_policy, **({} if kl_coef is None else {"kl_coef": kl_coef}))
        module.configure_model()
        assert (module.reference is not None) == there


@pytest.mark.parametrize("options", [{"clip_low": 1.5}, {"clip_high": -0.1}])
def test_impossible_clips_are_refused(options):
    with pytest.raises(UserError, match="clip_low must lie in"):
        DAPO(**options)


def test_rewards_of_plus_and_minus_one_give_the_advantages_of_one_and_nothing():
    """And the threshold of a half tells right from wrong in both."""
    texts = ["12;8#8", "12;8#9", "#8", "8"]
    both = [torch.tensor([final_answer(text, "8", wrong=wrong) for text in texts]).double() for wrong in (0.0, -1.0)]
    assert both[1].tolist() == [1, -1, 1, -1] and torch.equal(both[0] >= 0.5, both[1] >= 0.5)
    groups = torch.zeros(4, dtype=torch.long)
    assert_same(group_normalize(both[1], groups, eps=0.0), group_normalize(both[0], groups, eps=0.0))

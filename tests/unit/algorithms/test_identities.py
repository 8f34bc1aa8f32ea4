"""What the objectives mean in expectation, by enumerating a language of 15 responses (science of policy gradients, exactly)."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch

from rl_lightning.algorithms import GRPO, PPO
from rl_lightning.functional import KLEstimator, best_of_n_kl, group_normalize
from rl_lightning.types import Microbatch, Rollout
from tests.checks import assert_same
from tests.language import LONGEST, RESPONSES, TabularPolicy, module_gradient, prefix_number, rows, token_logprobs

ALL = list(range(len(RESPONSES)))
LENGTHS = torch.tensor([len(y) for y in RESPONSES], dtype=torch.float64)
REWARDS = torch.randn(len(RESPONSES), generator=torch.Generator().manual_seed(5), dtype=torch.float64)
REFERENCE = TabularPolicy(3)


def every_response(policy, advantages, per_token=True, **fields):
    """Return all 15 responses, each weighted by its probability: a sum over them is an expectation over y ~ policy.

    Args:
        per_token: whether a response's tokens share its weight (the notebook's 1/|y|), or each has it (`seq_sum`).
    """
    table = rows(ALL)
    weights = policy.probabilities().detach() / (LENGTHS if per_token else 1)
    return Microbatch(
        **table,
        group_ids=torch.tensor(ALL),
        temperature=1.0,
        weights=weights[:, None] * table["response_mask"],
        old_logprobs=token_logprobs(policy, ALL),
        ref_logprobs=token_logprobs(REFERENCE, ALL),
        advantages=advantages.expand(-1, LONGEST),
        **fields,
    )


def gradient_of(policy, value):
    """Return ∇ of a function of the policy's table."""
    policy.table.grad = None
    value(policy).backward()
    return policy.table.grad.clone()


def ppo(**options):
    return PPO(kl_coef=0.0, **options)


# ------------------------------------------------------- the notebook's red question


def test_at_theta_old_the_gradient_of_ppo_is_the_plain_policy_gradient():
    """The surrogate's minimum is tied between two branches with one derivative: exactly A, whatever the clip."""
    policy = TabularPolicy(1)
    advantages = torch.randn(15, LONGEST, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    batch = every_response(policy, advantages)
    weights = batch.weights * advantages

    def plain(policy):
        logprobs = torch.stack(
            [policy.table.log_softmax(-1)[prefix_number(y[:t]), y[t]] for y in RESPONSES for t in range(len(y))]
        )
        return (logprobs * weights[batch.response_mask]).sum()

    expected = gradient_of(policy, plain)
    for clip in (1e-9, 0.2):
        assert_same(module_gradient(ppo(clip_low=clip), policy, batch), expected)
    off_policy = every_response(policy, advantages)
    off_policy.old_logprobs = off_policy.old_logprobs - 0.1
    with pytest.raises(AssertionError):
        assert_same(module_gradient(ppo(clip_low=0.2), policy, off_policy), expected, relative=1e-3)


def test_without_a_mean_over_tokens_it_is_the_gradient_of_the_expected_reward():
    """With A = R and `seq_sum`, ∇J = ∇E[R]; with the notebook's 1/|y| it is ∇E[R/|y|], which is another thing."""
    policy = TabularPolicy(1)
    advantages = REWARDS[:, None]
    whole = gradient_of(policy, lambda policy: (policy.probabilities() * REWARDS).sum())
    shared = gradient_of(policy, lambda policy: (policy.probabilities() * REWARDS / LENGTHS).sum())
    by_sum = module_gradient(ppo(), policy, every_response(policy, advantages, per_token=False))
    by_mean = module_gradient(ppo(), policy, every_response(policy, advantages))
    assert_same(by_sum, whole)
    assert_same(by_mean, shared)
    with pytest.raises(AssertionError):
        assert_same(by_mean, whole, relative=0.05)


def test_a_baseline_makes_length_matter():
    """With 1/|y| a baseline b adds −b ∇E[1/|y|]: for rewards below it, longer is better. Without, it adds nothing."""
    policy, baseline = TabularPolicy(1), 0.7
    extra = -baseline * gradient_of(policy, lambda policy: (policy.probabilities() / LENGTHS).sum())
    for per_token, expected in ((True, extra), (False, torch.zeros_like(extra))):
        with_it, without = (
            module_gradient(ppo(), policy, every_response(policy, (REWARDS - b)[:, None], per_token))
            for b in (baseline, 0)
        )
        assert float((with_it - without - expected).abs().max()) < 1e-14
    assert float(extra.abs().max()) > 0.01


# ------------------------------------------------------------- where the KL acts


def sequence_divergence(policy):
    """Return KL(π ‖ π_ref) of whole responses."""
    probabilities, reference = policy.probabilities(), REFERENCE.probabilities().detach()
    return (probabilities * (probabilities / reference).log()).sum()


def state_divergences(policy, forward=False):
    """Return Σ_s d(s) KL_s with the visits d frozen: what a penalty on single tokens can follow."""
    own, other = policy.table.softmax(-1), REFERENCE.table.softmax(-1).detach()
    p, q = (other, own) if forward else (own, other)
    return (policy.states().detach() * (p * (p / q).log()).sum(-1)).sum()


def rollout_of(policy):
    """Return all 15 responses as a scored rollout with rewards of 0."""
    zeros = torch.zeros(15, dtype=torch.float64)
    return Rollout(
        **rows(ALL), group_ids=torch.tensor(ALL), temperature=1.0, prompt_index=torch.tensor(ALL),
        truncated=torch.zeros(15, dtype=torch.bool), rollout_logprobs=token_logprobs(policy, ALL), prompts=[""] * 15,
        responses=[""] * 15, answers=[None] * 15, raw_rewards=zeros, rewards=zeros.clone(), correct=zeros > 0,
        old_logprobs=token_logprobs(policy, ALL), ref_logprobs=token_logprobs(REFERENCE, ALL),
        values=torch.zeros(15, LONGEST, dtype=torch.float64), bootstrap_values=zeros.clone(),
    )  # fmt: skip


def reward_gradient(make, policy, estimator, per_token=False):
    """Return ∇J of a module whose rewards are 0 but for the penalty, with β = 1."""
    module = make(kl_coef=1.0, kl_in="reward", kl_estimator=estimator)
    rollout = rollout_of(policy)
    module.on_rollout_scored(rollout)
    advantages = rollout.penalised_rewards[:, None] if rollout.advantages is None else rollout.advantages
    return module_gradient(module, policy, every_response(policy, advantages, per_token))


def undiscounted(**options):
    return PPO(gamma=1.0, gae_lambda=1.0, **options)


@pytest.mark.parametrize("make", [undiscounted, GRPO])
def test_k1_in_the_reward_follows_the_divergence_of_responses_exactly(make):
    policy = TabularPolicy(1)
    expected = -gradient_of(policy, sequence_divergence)
    assert_same(reward_gradient(make, policy, "k1"), expected)
    for estimator in ("k2", "k3"):
        with pytest.raises(AssertionError):
            assert_same(reward_gradient(make, policy, estimator), expected, relative=0.1)
    with pytest.raises(AssertionError):  # and with 1/|y| it does not either
        assert_same(reward_gradient(make, policy, "k1", per_token=True), expected, relative=0.1)


def test_k3_in_the_reward_fades_near_the_reference():
    """The pull of k1 shrinks with the distance, that of k3 with its square."""
    shares = []
    for distance in (1.0, 0.1):
        policy = TabularPolicy(3)
        policy.table.data += distance * 0.3 * TabularPolicy(8).table.detach()
        exact, k3 = reward_gradient(GRPO, policy, "k1"), reward_gradient(GRPO, policy, "k3")
        shares.append(float(k3.norm() / exact.norm()))
    assert shares[1] < 0.2 * shares[0]


@pytest.mark.parametrize("estimator", get_args(KLEstimator))
def test_in_the_loss_each_estimator_has_the_gradient_that_its_docstring_says(estimator):
    """On policy, with the visits of prefixes frozen: none for k1, the forward divergence for k3, the reverse one else."""
    policy = TabularPolicy(1)
    module = GRPO(kl_coef=1.0, kl_estimator=estimator)
    batch = every_response(policy, torch.zeros(15, 1, dtype=torch.float64), per_token=False)
    actual = -module_gradient(module, policy, batch)
    forward = gradient_of(policy, lambda policy: state_divergences(policy, forward=True))
    reverse = gradient_of(policy, state_divergences)
    if estimator == "k1":
        assert float(actual.abs().max()) < 1e-14
        return
    right, wrong = (forward, reverse) if estimator == "k3" else (reverse, forward)
    assert_same(actual, right)
    with pytest.raises(AssertionError):
        assert_same(actual, wrong, relative=0.1)
    with pytest.raises(AssertionError):  # a loss on tokens misses what a token does to the prefixes that follow it
        assert_same(actual, gradient_of(policy, sequence_divergence), relative=0.02)


@pytest.mark.parametrize("estimator", get_args(KLEstimator))
def test_off_policy_only_the_weighted_estimator_follows_the_divergence(estimator):
    """y ~ π_old: ρ k3 has the gradient of the divergence at the prefixes that π_old visits; the others have not."""
    policy, old = TabularPolicy(1), TabularPolicy(2)
    module = GRPO(kl_coef=1.0, kl_estimator=estimator)
    batch = every_response(old, torch.zeros(15, 1, dtype=torch.float64), per_token=False)
    actual = -module_gradient(module, policy, batch)
    own, ref, visits = policy.table, REFERENCE.table.softmax(-1).detach(), old.states().detach()
    policy.table.grad = None
    p = own.softmax(-1)
    (visits * (p * (p / ref).log()).sum(-1)).sum().backward()
    expected = own.grad.clone()
    if estimator == "rho_k3":
        assert_same(actual, expected)
    else:
        with pytest.raises(AssertionError):
            assert_same(actual, expected, relative=0.05)


# ------------------------------------------------------------------------ groups


def test_a_group_without_spread_moves_the_policy_by_the_divergence_alone():
    policy = TabularPolicy(1)
    equal = group_normalize(torch.full((15,), 0.3, dtype=torch.float64), torch.tensor(ALL) // 5)
    batch = every_response(policy, equal[:, None])
    with_surrogate = module_gradient(GRPO(kl_coef=0.5), policy, batch)
    assert float(module_gradient(GRPO(kl_coef=0.0), policy, batch).abs().max()) == 0
    batch.advantages = torch.zeros_like(batch.advantages)
    assert_same(with_surrogate, module_gradient(GRPO(kl_coef=0.5), policy, batch))
    assert float(with_surrogate.abs().max()) > 0.01


def test_the_order_of_groups_and_of_their_members_does_not_matter():
    policy = TabularPolicy(1)
    groups = torch.tensor(ALL) // 5
    advantages = group_normalize(REWARDS, groups)
    assert float(torch.zeros(3, dtype=torch.float64).index_add(0, groups, advantages).abs().max()) < 1e-14
    batch = every_response(policy, advantages[:, None])
    order = torch.randperm(15, generator=torch.Generator().manual_seed(1))
    shuffled = batch.select(order)
    assert_same(module_gradient(GRPO(kl_coef=0.5), policy, shuffled), module_gradient(GRPO(kl_coef=0.5), policy, batch))
    assert_same(group_normalize(REWARDS[order], groups[order]), advantages[order])


# ------------------------------------------------------------- rejection sampling


def best_of(probabilities, rewards, n):
    """Return the distribution of the best of n responses: P(all at most this good) − P(all worse), in the order of rewards."""
    order = rewards.argsort()
    at_most = probabilities[order].cumsum(0)
    below = torch.cat([torch.zeros(1, dtype=torch.float64), at_most[:-1]])
    return (at_most**n - below**n)[order.argsort()]


@pytest.mark.parametrize("n", [1, 2, 8, 64])
def test_best_of_n_is_as_far_as_its_formula_or_nearer(n):
    """Exact for a continuum of rewards, which many equally likely responses come close to; a bound for few."""
    many = torch.full((200_000,), 1 / 200_000, dtype=torch.float64)
    few = TabularPolicy(1).probabilities().detach()
    rewards = torch.arange(200_000, dtype=torch.float64)
    divergences = []
    for probabilities, scores in ((many, rewards), (few, REWARDS)):
        best = best_of(probabilities, scores, n)
        divergences.append(float((best * (best / probabilities).log()).nan_to_num().sum()))
    assert abs(divergences[0] - best_of_n_kl(n)) < 1e-3
    assert divergences[1] <= best_of_n_kl(n) + 1e-12
    assert abs(divergences[0] - (math.log(n) - 1)) > 1e-2 or n == 64  # without (n − 1)/n it would be another number


def test_best_of_sixty_thousand_is_ten_nats():
    assert round(best_of_n_kl(60_000), 3) == 10.002 and best_of_n_kl(1) == 0
    with pytest.raises(ValueError, match="at least 1"):
        best_of_n_kl(0)

"""DPO against the notebook's gradient, pair by pair."""

import dataclasses
import math

import pytest
import torch
from torch.nn import functional

from rl_lightning.algorithms import DPO
from rl_lightning.algorithms.policy import Outputs
from rl_lightning.errors import UserError
from rl_lightning.models import LoadOptions
from tests.checks import assert_same, gradient_difference, holds_only_for
from tests.pairs import part_of, random_pairs


def coefficient(module, batch):
    """Return log π_θ, and the gradient of Σ w J in it."""
    generator = torch.Generator().manual_seed(11)
    noise = torch.randn(batch.ref_logprobs.shape, generator=generator, dtype=torch.float64)
    logprobs = (batch.ref_logprobs + 0.4 * noise).requires_grad_()
    (-module.weigh(batch, module.objective(batch, logprobs))).backward()
    return logprobs.detach(), logprobs.grad


class NoBeta(DPO):
    """DeepSeekMath's Eq. 14 as it is printed: no β before the gradient."""

    def objective(self, batch, logprobs):
        return super().objective(batch, logprobs) / self.beta


class PrintedSigma(DPO):
    """The same Eq. 14's ς: no β inside σ either."""

    def objective(self, batch, logprobs):
        beta, self.beta = self.beta, 1.0
        try:
            return beta * super().objective(batch, logprobs)
        finally:
            self.beta = beta


class OtherNormalization(DPO):
    """Sums for means, or means for sums."""

    def __init__(self, length_normalize=True, **options):
        super().__init__(length_normalize=not length_normalize, **options)


class Swapped(DPO):
    def objective(self, batch, logprobs):
        return -super().objective(batch, logprobs)


class PerToken(DPO):
    """ς_t, a number a token, as the notebook's subscript may be read."""

    def objective(self, batch, logprobs):
        sign = torch.tensor([1.0, -1.0], dtype=logprobs.dtype).repeat(len(logprobs) // 2).unsqueeze(1)
        return functional.logsigmoid(sign * self.beta * (logprobs - batch.ref_logprobs))


MUTANTS = {
    "no_beta": NoBeta,
    "printed_sigma": PrintedSigma,
    "other_normalization": OtherNormalization,
    "swapped": Swapped,
    "per_token": PerToken,
}


def expected_coefficient(batch, logprobs, beta, normalize, pairs):
    """±βς/|y±| over the number of pairs; without the length for sums. Pair by pair, in plain numbers."""
    expected = torch.zeros_like(logprobs)
    for pair in range(pairs):
        margins, lengths = [], []
        for row in (2 * pair, 2 * pair + 1):
            mask = batch.response_mask[row]
            total = float((logprobs[row] - batch.ref_logprobs[row])[mask].sum())
            lengths.append(int(mask.sum()) if normalize else 1)
            margins.append(total / lengths[-1])
        varsigma = 1 / (1 + math.exp(beta * margins[0] - beta * margins[1]))
        for row, length, sign in ((2 * pair, lengths[0], 1), (2 * pair + 1, lengths[1], -1)):
            expected[row][batch.response_mask[row]] = sign * beta * varsigma / length / pairs
    return expected


@holds_only_for(DPO, **MUTANTS)
def test_length_normalised_the_coefficient_is_beta_varsigma_over_the_length(implementation):
    batch = random_pairs()
    logprobs, actual = coefficient(implementation(beta=0.7), batch)
    assert_same(actual, expected_coefficient(batch, logprobs, 0.7, True, 8))


@holds_only_for(DPO, **MUTANTS)
def test_of_sums_the_coefficient_is_beta_varsigma(implementation):
    batch = random_pairs()
    logprobs, actual = coefficient(implementation(beta=0.7, length_normalize=False), batch)
    assert_same(actual, expected_coefficient(batch, logprobs, 0.7, False, 8))


def test_the_defaults_of_beta_follow_the_normalization():
    assert DPO().beta == 5.0
    assert DPO(length_normalize=False).beta == 0.1
    assert DPO(beta=2.0).beta == 2.0


def test_label_smoothing_takes_its_share_of_the_gradient():
    """(1 − ε) ς − ε (1 − ς) in the place of ς."""
    batch = random_pairs(pairs=1)
    _, plain = coefficient(DPO(beta=0.7), batch)
    _, smoothed = coefficient(DPO(beta=0.7, label_smoothing=0.2), batch)
    length = int(batch.response_mask[0].sum())
    varsigma = float(plain[0, 0]) * length / 0.7
    assert_same(smoothed[0, 0] * length / 0.7, torch.tensor(varsigma - 0.2, dtype=torch.float64))


def observed(module, batch, logprobs):
    """Return what the step logs."""
    module.observe(module.observed(batch, Outputs(logprobs, torch.zeros_like(logprobs))), batch)
    module.observations.add_to_loss(module.weigh(batch, module.objective(batch, logprobs)))
    return module.observations.flush(lambda totals: totals)


@pytest.mark.parametrize("normalize", [True, False])
def test_at_the_reference_j_is_minus_log_two_and_varsigma_a_half(normalize):
    batch = random_pairs()
    module = DPO(beta=0.7, length_normalize=normalize)
    logprobs = batch.ref_logprobs.clone().requires_grad_()
    loss = module.weigh(batch, module.objective(batch, logprobs))
    loss.backward()
    assert_same(loss.detach(), torch.tensor(math.log(2), dtype=torch.float64))
    length = int(batch.response_mask[0].sum()) if normalize else 1
    assert_same(-logprobs.grad[0, 0] * length * 8 / 0.7, torch.tensor(0.5, dtype=torch.float64))


def test_swapping_the_responses_of_every_pair_turns_the_margin_over():
    batch = random_pairs()
    logprobs, _ = coefficient(DPO(), batch)
    order = torch.arange(16).view(8, 2).flip(1).flatten()
    there = observed(DPO(), batch, logprobs)
    back = observed(DPO(), swapped_rows(batch, order), logprobs[order])
    assert math.isclose(there["dpo/margin"], -back["dpo/margin"])
    assert math.isclose(there["dpo/accuracy"], 1 - back["dpo/accuracy"])
    assert math.isclose(there["dpo/chosen_reward"], back["dpo/rejected_reward"])


def swapped_rows(batch, order):
    rows = {
        name: value[order]
        for name, value in vars(batch).items()
        if isinstance(value, torch.Tensor) and name != "margins"
    }
    return dataclasses.replace(batch, **rows)


def test_what_is_logged_is_a_mean_over_pairs_not_over_tokens():
    batch = random_pairs()
    logprobs, _ = coefficient(DPO(), batch)
    logged = observed(DPO(beta=0.7), batch, logprobs)
    means = torch.tensor(
        [float((logprobs - batch.ref_logprobs)[row][batch.response_mask[row]].mean()) for row in range(16)]
    ).double()
    plain = [float(logprobs[row][batch.response_mask[row]].mean()) for row in range(0, 16, 2)]
    expected = {
        "dpo/margin": 0.7 * float((means[0::2] - means[1::2]).mean()),
        "dpo/accuracy": float((means[0::2] > means[1::2]).double().mean()),
        "dpo/chosen_reward": 0.7 * float(means[0::2].mean()),
        "dpo/rejected_reward": 0.7 * float(means[1::2].mean()),
        "policy/chosen_logprob": sum(plain) / 8,
    }
    for name, value in expected.items():
        assert logged[name] == pytest.approx(value, rel=1e-6), name
    per_token = 0.7 * float((logprobs - batch.ref_logprobs)[0::2][batch.response_mask[0::2]].mean())
    assert logged["dpo/chosen_reward"] != pytest.approx(per_token, rel=1e-3)


def step_gradient(policy, size):
    batch = random_pairs()
    module = DPO(policy=policy, load=LoadOptions(dtype="float64"), beta=2.0)
    module.configure_model()
    for first in range(0, 8, size):
        module.loss(part_of(batch, range(first, first + size))).backward()
    return {name: parameter.grad for name, parameter in module.policy.named_parameters()}


def test_microbatches_do_not_change_the_gradient(tiny_policy):
    """1 × 8 ≡ 2 × 4 ≡ 8 × 1 pairs of unequal lengths; and pairs that are cut apart are another gradient."""
    whole = step_gradient(tiny_policy, 8)
    for size in (4, 1):
        assert gradient_difference(step_gradient(tiny_policy, size), whole) < 1e-12
    batch = random_pairs()
    module = DPO(policy=tiny_policy, load=LoadOptions(dtype="float64"), beta=2.0)
    module.configure_model()
    module.loss(swapped_rows(batch, torch.arange(16).roll(1))).backward()
    apart = {name: parameter.grad for name, parameter in module.policy.named_parameters()}
    assert gradient_difference(apart, whole) > 1e-2


def test_what_lies_in_the_padding_changes_nothing():
    losses = []
    for fill in (0.0, torch.nan):
        batch = random_pairs()
        batch.ref_logprobs = torch.where(batch.response_mask, batch.ref_logprobs, fill)
        logprobs = torch.where(batch.response_mask, -torch.ones_like(batch.ref_logprobs), fill).requires_grad_()
        loss = DPO().weigh(batch, DPO().objective(batch, logprobs))
        loss.backward()
        losses.append((float(loss.detach()), logprobs.grad))
    assert losses[0][0] == losses[1][0]
    assert torch.equal(losses[0][1], losses[1][1])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"beta": 0.0}, "beta must be above 0"),
        ({"beta": -1.0}, "beta must be above 0"),
        ({"label_smoothing": 0.5}, "label_smoothing"),
        ({"label_smoothing": -0.1}, "label_smoothing"),
        ({"reduction": "token_mean"}, "leave it out"),
    ],
)
def test_senseless_options_are_refused_in_one_line(options, said):
    with pytest.raises(UserError, match=said) as error:
        DPO(**options)
    assert "\n" not in str(error.value)


def test_pairs_without_a_reference_are_refused():
    batch = random_pairs()
    logprobs, batch.ref_logprobs = batch.ref_logprobs, None
    with pytest.raises(UserError, match="RewardDataModule"):
        DPO().objective(batch, logprobs)


def test_the_reference_is_the_policy_as_it_began_unless_named(tiny_policy):
    assert DPO(policy=tiny_policy).reference_files.policy == tiny_policy
    assert DPO(policy="embedded", reference=tiny_policy).reference_files.policy == tiny_policy

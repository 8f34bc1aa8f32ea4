"""What is the same in all algorithms: identities between them, exact expectations, splits, and rows that teach nothing."""

from __future__ import annotations

import dataclasses
from functools import partial

import pytest
import torch

from rl_lightning.algorithms import CISPO, DPPO, GRPO, GSPO, KTO, SAPO, ReinforcePlusPlus
from rl_lightning.errors import UserError
from rl_lightning.functional import batch_totals, group_normalize, token_weights
from rl_lightning.types import Microbatch
from tests.checks import assert_same, holds_only_for
from tests.identities import ADVANTAGES, GROUPS, HERE, IDENTITIES, MASK, POLICY, REF, TABLE, THERE, difference
from tests.language import LONGEST, RESPONSES, TabularPolicy, module_gradient

# ---------------------------------------------------------------------- identities


@pytest.mark.parametrize("identity", IDENTITIES, ids=lambda one: one.name)
def test_two_are_one(identity):
    assert identity.error <= identity.tolerance
    assert difference(identity.other(), identity.right()) > 1e-3, "the comparison cannot fail"


# ---------------------------------------- what advantages maximise, over all groups of a small language

LENGTHS = torch.tensor([len(y) for y in RESPONSES])
RIGHT = torch.tensor([float(sum(y) % 3 == 0) for y in RESPONSES], dtype=torch.float64)
SAMPLED = TabularPolicy(5)


def gradient_of(value):
    SAMPLED.table.grad = None
    value.backward()
    return SAMPLED.table.grad.clone()


def pass_rate():
    return (SAMPLED.probabilities() * RIGHT).sum()


def pass_at(k):
    return 1 - (1 - pass_rate()) ** k


def expected(size, advantages):
    """Return E 1/G Σ_i A_i ∇ log π(y_i), over all 15^G groups of G responses, each with its probability."""
    logprobs = SAMPLED.probabilities().log()
    groups = torch.cartesian_prod(*[torch.arange(15)] * size)
    chances = logprobs.detach().exp()[groups].prod(1)
    number = torch.arange(len(groups)).repeat_interleave(size)
    flat = groups.flatten()
    values = advantages(RIGHT[flat], number, lengths=LENGTHS[flat]).view(-1, size)
    return gradient_of((chances * (values * logprobs[groups]).sum(1)).sum() / size)


def normalize(**options):
    return partial(group_normalize, eps=0.0, **options)


RLOO, DR_GRPO = normalize(scale="none", baseline="others"), normalize(scale="none")
MAX_RL, OPO = normalize(scale="mean"), normalize(scale="none", baseline="length")
G = (2, 3)


@holds_only_for(RLOO, dr_grpo=DR_GRPO, grpo=normalize(), max_rl=MAX_RL, opo=OPO)
def test_rloo_maximises_the_pass_rate(advantages):
    for size in G:
        assert_same(expected(size, advantages), gradient_of(pass_rate()), relative=1e-11)


@holds_only_for(DR_GRPO, rloo=RLOO, grpo=normalize(), opo=OPO)
def test_dr_grpo_maximises_a_share_of_it(advantages):
    for size in G:
        assert_same(expected(size, advantages), (size - 1) / size * gradient_of(pass_rate()), relative=1e-11)


@holds_only_for(MAX_RL, dr_grpo=DR_GRPO, rloo=RLOO, grpo=normalize())
def test_max_rl_maximises_the_first_terms_of_the_logarithm(advantages):
    """∇ Σ_{k<G} pass@k / k, whose limit is ∇ log of the pass rate."""
    for size in G:
        terms = gradient_of(sum(pass_at(k) / k for k in range(1, size)))
        assert_same(expected(size, advantages), terms, relative=1e-11)


def test_opo_is_biased():
    """Its baseline contains the sample itself: what it follows is not parallel to the gradient of the pass rate."""
    followed, wanted = expected(2, OPO).flatten(), gradient_of(pass_rate()).flatten()
    cosine = float(followed @ wanted / followed.norm() / wanted.norm())
    assert 0.9 < cosine < 0.999
    for unbiased in (RLOO, DR_GRPO):
        other = expected(2, unbiased).flatten()
        assert float(other @ wanted / other.norm() / wanted.norm()) == pytest.approx(1, abs=1e-12)


# ------------------------------------------------------------------------ advantages


def slow_baseline(rewards, scored, lengths, baseline):
    """Row by row, in groups of four."""
    result = []
    for row, reward in enumerate(rewards.tolist()):
        own = [j for j in range(row // 4 * 4, row // 4 * 4 + 4) if scored[j]]
        if baseline == "others":
            own = [j for j in own if j != row]
        share = [float(lengths[j]) if baseline == "length" else 1.0 for j in own]
        mean = sum(part * float(rewards[j]) for part, j in zip(share, own, strict=True)) / sum(share)
        result.append(reward - mean if scored[row] else 0.0)
    return torch.tensor(result, dtype=torch.float64)


@pytest.mark.parametrize("baseline", ["mean", "others", "length"])
def test_a_baseline_is_that_of_a_loop(baseline):
    rewards = torch.rand(16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    scored = torch.ones(16, dtype=torch.bool)
    scored[[1, 9]] = False
    lengths = torch.arange(16) % 5 + 1
    failed = torch.where(scored, rewards, torch.nan)
    found = group_normalize(failed, GROUPS, scored, scale="none", baseline=baseline, lengths=lengths)
    assert_same(found, slow_baseline(rewards, scored, lengths, baseline))
    for other in {"mean", "others", "length"} - {baseline}:
        assert difference(found, slow_baseline(rewards, scored, lengths, other)) > 1e-2


# ---------------------------------------------- one step, however it is cut, and rows that teach nothing

MODULES = {
    "GSPO": lambda **options: GSPO(clip_low=0.05, clip_high=0.08, **options),
    "CISPO": lambda **options: CISPO(weight_high=1.2, **options),
    "SAPO": SAPO,
    "DPPO": lambda **options: DPPO(delta=0.05, **options),
    "product": lambda **options: GRPO(**{"kl_coef": 0.0, **options}, ratio_level="sequence", clip_low=0.3),
    "REINFORCE++": lambda **options: ReinforcePlusPlus(**options) if not options else None,
}


def parts(module, chosen, advantages):
    """Return the sum of the gradients of some microbatches of one step, each a list of rows."""
    weights = token_weights(MASK, GROUPS, module.reduction, batch_totals(MASK, GROUPS), LONGEST)
    whole = Microbatch(
        **TABLE, group_ids=GROUPS, temperature=1.0, weights=weights, old_logprobs=THERE, ref_logprobs=REF, advantages=advantages
    )  # fmt: skip
    return sum(module_gradient(module, POLICY, whole.select(rows)) for rows in chosen)


@pytest.mark.parametrize("name", MODULES)
def test_splits_do_not_change_the_gradient(name):
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    for options in ({}, {"kl_coef": 0.1}):
        module = MODULES[name](**options)
        if module is not None:
            whole = parts(module, [torch.arange(16)], ADVANTAGES)
            for size in (3, 1):
                assert difference(parts(module, order.split(size), ADVANTAGES), whole) < 1e-13
            half = parts(module, [order[:8]], ADVANTAGES) * 2
            assert difference(half, whole) > 1e-2


@pytest.mark.parametrize("name", MODULES)
def test_rows_without_advantage_can_be_left_out_where_the_module_says_so(name):
    advantages = ADVANTAGES.clone()
    advantages[4:8] = 0
    kept = torch.tensor([row for row in range(16) if not 4 <= row < 8])
    module = MODULES[name]()
    assert not module.learns_from_zero_advantages
    whole = parts(module, [torch.arange(16)], advantages)
    assert difference(parts(module, [kept], advantages), whole) < 1e-14
    pulled = MODULES[name](kl_coef=0.1)
    if pulled is not None:
        assert pulled.learns_from_zero_advantages
        whole = parts(pulled, [torch.arange(16)], advantages)
        assert difference(parts(pulled, [kept], advantages), whole) > 1e-3
        assert not MODULES[name](kl_coef=0.1, kl_in="reward").learns_from_zero_advantages
        assert MODULES[name](entropy_coef=0.1).learns_from_zero_advantages


def test_a_token_that_does_not_count_is_in_no_ratio_of_a_response():
    """The mask decides, not the padding."""
    module, hole = GSPO(clip_low=0.05, clip_high=0.08), MASK.clone()
    long = next(row for row in range(16) if int(MASK[row].sum()) == 3)
    hole[long, 1] = False
    batch = Microbatch(**{**TABLE, "response_mask": hole}, group_ids=GROUPS, temperature=1.0, old_logprobs=THERE)
    ratio = module.ratio(batch, HERE)[long]
    mean = ((HERE - THERE)[long, 0] + (HERE - THERE)[long, 2]) / 2
    assert_same(ratio[0], mean.exp())
    whole = module.ratio(dataclasses.replace(batch, response_mask=MASK), HERE)[long]
    assert difference(ratio[0], whole[0]) > 1e-4


# ------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: CISPO(clip_low=0.2), "no option 'clip_low'"),
        (lambda: SAPO(clip_low=0.2), "no option 'clip_low'"),
        (lambda: DPPO(clip_high=0.2), "no option 'clip_high'"),
        (lambda: GSPO(ratio_level="token"), "no option 'ratio_level'"),
        (lambda: ReinforcePlusPlus(kl_in="loss"), "no option 'kl_in'"),
        (lambda: CISPO(weight_low=1.5), "weight_low must lie in"),
        (lambda: CISPO(weight_high=0.2), "weight_high above 1"),
        (lambda: SAPO(tau_up=0.0), "above 0"),
        (lambda: DPPO(delta=0.0), "delta must lie"),
        (lambda: GRPO(dual_clip=0.5), "dual_clip"),
        (lambda: KTO(beta=0.0), "above 0"),
    ],
)
def test_options_that_would_do_nothing_or_harm_are_refused(make, said):
    with pytest.raises(UserError, match=said) as error:
        make()
    assert "\n" not in str(error.value)

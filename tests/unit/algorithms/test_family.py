"""Every algorithm after DAPO, and the recipes that are other options of one, against the gradient coefficient of its source.

As in `test_notebook`: the left side is autograd on the module's own objective, the right side a loop over single tokens.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch

from examples.new_objective import TOPR
from rl_lightning.algorithms import (
    CISPO,
    DPO,
    DPPO,
    GRPO,
    GSPO,
    IPO,
    KTO,
    ORPO,
    PPO,
    SAPO,
    Distillation,
    LabelledKTO,
    ReinforcePlusPlus,
    RobustDPO,
    SimPO,
)
from tests.unit.algorithms.test_notebook import (
    BETA,
    Case,
    Row,
    advantage,
    check,
    per_group_token,
    per_pair,
    per_pair_token,
    per_response,
    per_token,
    reinforce_with_ratio,
)

PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "objective.md"
#: Clips of the geometric mean that bind for some responses here and not for others.
NEAR = {"clip_low": 0.05, "clip_high": 0.08}


def per_sum(case: Case, i: int) -> float:
    """1 / N."""
    return 1 / 16


def log_ratios(case: Case, i: int) -> list[float]:
    return [float(case.logprobs[i, t] - case.old[i, t]) for t in range(case.length(i))]


def geometric_mean(case: Case, i: int) -> float:
    return math.exp(sum(log_ratios(case, i)) / case.length(i))


def binds(ratio: float, a: float, low: float, high: float) -> bool:
    return (a > 0 and ratio > 1 + high) or (a < 0 and ratio < 1 - low)


def one_advantage(case: Case, i: int, t: int) -> float:
    return float(case.of_responses[i, 0])


def gspo(of=advantage):
    def gc(case: Case, i: int, t: int) -> float:
        s, a = geometric_mean(case, i), of(case, i, t)
        return 0.0 if binds(s, a, 0.05, 0.08) else s * a

    return gc


def product(case: Case, i: int, t: int) -> float:
    return math.exp(sum(log_ratios(case, i))) * advantage(case, i, t)


def cispo(low: float, high: float):
    return lambda case, i, t: min(max(case.ratio(i, t), low), high) * advantage(case, i, t)


def sapo(up: float = 1.0, down: float = 1.05):
    def gc(case: Case, i: int, t: int) -> float:
        tau = up if advantage(case, i, t) > 0 else down
        return case.ratio(i, t) * advantage(case, i, t) / math.cosh(tau * (case.ratio(i, t) - 1) / 2) ** 2

    return gc


def dppo(delta: float, cap: float):
    def gc(case: Case, i: int, t: int) -> float:
        moved = math.exp(case.logprobs[i, t]) - math.exp(case.old[i, t])
        a = advantage(case, i, t)
        out = (a > 0 and moved > delta) or (a < 0 and -moved > delta)
        return 0.0 if out else min(case.ratio(i, t), cap) * a

    return gc


def dual(case: Case, i: int, t: int) -> float:
    """PPO's clip, and nothing where A < 0 and ρ > 1.2."""
    return 0.0 if advantage(case, i, t) < 0 and case.ratio(i, t) > 1.2 else case.surrogate(i, t)


# ------------------------------------------------------------------------------- pairs


def mean(case: Case, i: int) -> float:
    """The mean of log π_θ."""
    return float(case.logprobs[i].sum()) / case.length(i)


def pair(i: int) -> tuple[int, int]:
    return i - i % 2, i - i % 2 + 1


def sigma(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def ipo(tau: float, means: bool):
    def gc(case: Case, i: int, t: int) -> float:
        chosen, rejected = pair(i)
        h = case.score(chosen, means) - case.score(rejected, means)
        return -case.sign(i) * 2 * (h - 1 / (2 * tau))

    return gc


def simpo(beta: float, margin: float):
    def gc(case: Case, i: int, t: int) -> float:
        chosen, rejected = pair(i)
        return case.sign(i) * beta * sigma(beta * margin - beta * (mean(case, chosen) - mean(case, rejected)))

    return gc


def orpo(weight: float, likelihood: float = 1.0):
    def gc(case: Case, i: int, t: int) -> float:
        odds = [mean(case, j) - math.log(1 - math.exp(mean(case, j))) for j in pair(i)]
        slope = case.sign(i) * weight * sigma(odds[1] - odds[0]) / (1 - math.exp(mean(case, i)))
        return slope + likelihood * (i % 2 == 0)

    return gc


def smoothed(of_right: float, of_wrong: float):
    """±β [of_right · σ(−z) + of_wrong · σ(z)]."""
    return lambda case, i, t: (
        case.sign(i) * BETA * (of_right * case.sigma(i, mean=True) + of_wrong * (1 - case.sigma(i, mean=True)))
    )


def kto(z0: float, up: float, down: float):
    def gc(case: Case, i: int, t: int) -> float:
        u = BETA * (case.score(i, mean=False) - z0)
        return case.sign(i) * (up if i % 2 == 0 else down) * BETA * sigma(u) * sigma(-u) / 2

    return gc


def with_z0(z0: float, kind: type[KTO] = KTO) -> KTO:
    module = kind(beta=BETA, undesirable=1.3)
    module.z0 = torch.tensor(z0, dtype=torch.float64)
    return module


def labelled_kto(z0: float, up: float, down: float):
    def gc(case: Case, i: int, t: int) -> float:
        sign = math.copysign(1, one_advantage(case, i, t))
        u = sign * BETA * (case.score(i, mean=False) - z0)
        return sign * (up if sign > 0 else down) * BETA * sigma(u) * sigma(-u)

    return gc


def desensitized(alpha: float):
    """DPO of sums in which tokens beyond the shorter response count α."""

    def gc(case: Case, i: int, t: int) -> float:
        shorter = min(map(case.length, pair(i)))

        def score(j: int) -> float:
            each = case.logprobs[j] - case.ref[j]
            return float(sum(each[u] * (1 if u < shorter else alpha) for u in range(case.length(j))))

        chosen, rejected = pair(i)
        return case.sign(i) * BETA * sigma(BETA * (score(rejected) - score(chosen))) * (1 if t < shorter else alpha)

    return gc


def cpo(case: Case, i: int, t: int) -> float:
    """±βσ(−z) of sums, and 1/|y⁺| on what was chosen."""
    sums = [mean(case, j) * case.length(j) for j in pair(i)]
    return case.sign(i) * BETA * sigma(BETA * (sums[1] - sums[0])) + (i % 2 == 0) / case.length(i)


def from_the_page(name: str, **options):
    """Return an algorithm that docs/how-to/objective.md shows, made from the text there."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    (code,) = [block for block in blocks if f"class {name}(" in block]
    space: dict = {"__name__": name}
    exec(compile(code, str(PAGE), "exec"), space)
    return space[name](**options)


def ce_gppo(below: float, above: float):
    def gc(case: Case, i: int, t: int) -> float:
        ratio, a = case.ratio(i, t), advantage(case, i, t)
        if a < 0 and ratio < 0.9:
            return below * 0.9 * a
        return above * 1.15 * a if a > 0 and ratio > 1.15 else ratio * a

    return gc


def topr(at_most: float = 1.0):
    def gc(case: Case, i: int, t: int) -> float:
        whole = math.exp(sum(log_ratios(case, i)))
        return one_advantage(case, i, t) * (1 if one_advantage(case, i, t) > 0 else min(whole, at_most))

    return gc


TABLE = {
    "TOPR": Row(
        TOPR,
        per_response,
        topr(),
        [(per_response, topr(math.inf)), (per_response, one_advantage)],
        on_policy=one_advantage,
        reads="of_responses",
    ),
    "CE-GPPO, of the page": Row(
        lambda: from_the_page("CEGPPO", kl_coef=0.0, clip_low=0.1, clip_high=0.15),
        per_response,
        ce_gppo(0.75, 1.0),
        [
            (per_response, ce_gppo(1.0, 0.75)),
            (per_response, ce_gppo(0.0, 0.0)),
            (per_response, ce_gppo(0.75, 0.0)),
            (per_response, reinforce_with_ratio),
        ],
        on_policy=advantage,
    ),
    "GSPO": Row(
        lambda: GSPO(**NEAR),
        per_response,
        gspo(one_advantage),
        [
            (per_response, lambda c, i, t: c.ratio(i, t) * one_advantage(c, i, t)),
            (per_token, gspo(one_advantage)),
            (per_response, lambda c, i, t: geometric_mean(c, i) * one_advantage(c, i, t)),
        ],
        on_policy=one_advantage,
        reads="of_responses",
    ),
    "GSPO-token": Row(
        lambda: PPO(kl_coef=0.0, ratio_level="sequence_mean", **NEAR),
        per_response,
        gspo(),
        [(per_response, product), (per_response, lambda c, i, t: c.surrogate(i, t))],
        on_policy=advantage,
    ),
    "LUSPO": Row(
        lambda: GSPO(reduction="seq_sum", **NEAR),
        per_sum,
        gspo(),
        [(per_response, gspo())],
        on_policy=advantage,
    ),
    "whole responses": Row(
        lambda: CISPO(weight_high=math.inf, ratio_level="sequence"),
        per_group_token,
        product,
        [(per_group_token, reinforce_with_ratio)],
        on_policy=advantage,
    ),
    "CISPO": Row(
        lambda: CISPO(weight_high=1.2),
        per_group_token,
        cispo(0, 1.2),
        [(per_group_token, cispo(0, 1.25)), (per_group_token, cispo(0.8, 1.2)), (per_token, cispo(0, 1.2))],
        on_policy=advantage,
    ),
    "CISPO with two bounds": Row(
        lambda: CISPO(weight_low=0.9, weight_high=1.2, reduction="token_mean"),
        per_token,
        cispo(0.9, 1.2),
        [(per_token, cispo(0, 1.2)), (per_token, lambda c, i, t: c.surrogate(i, t, 0.1, 0.2))],
        on_policy=advantage,
    ),
    "GPG": Row(
        lambda: CISPO(weight_low=1.0, weight_high=1.0, reduction="token_mean"),
        per_token,
        advantage,
        [(per_token, reinforce_with_ratio)],
    ),
    "SAPO": Row(
        SAPO,
        per_response,
        sapo(),
        [(per_response, sapo(1.05, 1.0)), (per_response, reinforce_with_ratio)],
        on_policy=advantage,
    ),
    "DPPO": Row(
        lambda: DPPO(delta=0.06, weight_high=1.18, reduction="token_mean"),
        per_token,
        dppo(0.06, 1.18),
        [
            (per_token, dppo(0.09, 1.18)),
            (per_token, dppo(0.06, math.inf)),
            (per_token, dppo(1, 1.18)),
            (per_token, lambda c, i, t: c.surrogate(i, t)),
        ],
        on_policy=advantage,
    ),
    "two-sided clip": Row(
        lambda: GRPO(kl_coef=0.0, dual_clip=1.2),
        per_response,
        dual,
        [(per_response, lambda c, i, t: c.surrogate(i, t))],
        on_policy=advantage,
    ),
    "REINFORCE++": Row(
        ReinforcePlusPlus,
        per_token,
        lambda c, i, t: c.surrogate(i, t),
        [(per_response, lambda c, i, t: c.surrogate(i, t)), (per_token, reinforce_with_ratio)],
        on_policy=advantage,
    ),
    "distillation": Row(
        lambda: Distillation(teacher="embedded"),
        per_token,
        lambda c, i, t: c.surrogate(i, t),
        [(per_token, lambda c, i, t: c.surrogate(i, t) + c.pull(i, t))],
        on_policy=advantage,
    ),
    "IPO": Row(
        lambda: IPO(tau=0.7),
        per_pair_token,
        ipo(0.7, means=True),
        [
            (per_pair_token, ipo(0.7, means=False)),
            (per_pair_token, ipo(1.4, means=True)),
            (per_pair_token, lambda c, i, t: ipo(0.7, means=True)(c, i, t) / 2),
        ],
    ),
    "IPO with sums": Row(
        lambda: IPO(tau=0.7, length_normalize=False),
        per_pair,
        ipo(0.7, means=False),
        [(per_pair_token, ipo(0.7, means=False))],
    ),
    "SimPO": Row(
        lambda: SimPO(margin=0.3),
        per_pair_token,
        simpo(2.0, 0.3),
        [(per_pair_token, simpo(2.0, 0.15)), (per_pair_token, simpo(2.0, 0)), (per_pair, simpo(2.0, 0.3))],
    ),
    "CPO": Row(
        lambda: SimPO(beta=BETA, margin=0.0, length_normalize=False, sft_coef=1.0),
        per_pair,
        cpo,
        [(per_pair, lambda c, i, t: cpo(c, i, t) - (i % 2 == 0) / c.length(i))],
    ),
    "ORPO": Row(
        lambda: ORPO(beta=0.4),
        per_pair_token,
        orpo(0.4),
        [(per_pair_token, orpo(0.4, likelihood=0)), (per_pair_token, lambda c, i, t: (i % 2 == 0) * 1.0)],
    ),
    "robust DPO": Row(
        lambda: RobustDPO(beta=BETA, label_smoothing=0.2),
        per_pair_token,
        smoothed(0.8 / 0.6, 0.2 / 0.6),
        [(per_pair_token, smoothed(0.8, 0.2)), (per_pair_token, smoothed(0.8, -0.2)), (per_pair_token, smoothed(1, 0))],
    ),
    "conservative DPO": Row(
        lambda: DPO(beta=BETA, label_smoothing=0.2),
        per_pair_token,
        smoothed(0.8, -0.2),
        [(per_pair_token, smoothed(0.8 / 0.6, 0.2 / 0.6))],
    ),
    "LD-DPO": Row(
        lambda: DPO(beta=BETA, length_normalize=False, beyond_shorter=0.5),
        per_pair,
        desensitized(0.5),
        [(per_pair, desensitized(1.0)), (per_pair, desensitized(0.0))],
    ),
    "KTO": Row(
        lambda: with_z0(0.2),
        per_pair,
        kto(0.2, 1.0, 1.3),
        [
            (per_pair, kto(0.0, 1.0, 1.3)),
            (per_pair, kto(0.2, 1.3, 1.0)),
            (per_pair, lambda c, i, t: 2 * kto(0.2, 1.0, 1.3)(c, i, t)),
            (per_pair_token, kto(0.2, 1.0, 1.3)),
        ],
    ),
    "KTO of single responses": Row(
        lambda: with_z0(0.2, LabelledKTO),
        per_sum,
        labelled_kto(0.2, 1.0, 1.3),
        [
            (per_sum, labelled_kto(0.0, 1.0, 1.3)),
            (per_sum, labelled_kto(0.2, 1.3, 1.0)),
            (per_response, labelled_kto(0.2, 1.0, 1.3)),
            (per_sum, lambda c, i, t: 2 * kto(0.2, 1.0, 1.3)(c, i, t)),  # which of a pair it is
        ],
        reads="of_responses",
    ),
}


@pytest.mark.parametrize("place", ["on policy", "off policy"])
@pytest.mark.parametrize("name", TABLE)
def test_the_gradient_is_that_of_a_loop_over_tokens(name, place):
    check(TABLE[name], place)

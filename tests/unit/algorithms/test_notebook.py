"""The notebook as a test: ∇J = E Σ_t w GC ∇ log π, for every objective and its gradient coefficient (DeepSeekMath, Table 10).

The left side is autograd on the module's own objective; the right side is a loop over single tokens of a table of logits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from rl_lightning.algorithms import DAPO, DPO, GRPO, PPO, RFT, SFT, PairModule
from rl_lightning.functional import batch_totals, token_weights
from rl_lightning.types import Microbatch, PreferenceBatch
from tests.checks import assert_same
from tests.language import RESPONSES, TabularPolicy, module_gradient, rows, slow_gradient, token_logprobs

#: Responses of four groups of four, of lengths 1 to 3, some twice.
NUMBERS = [0, 3, 14, 1, 5, 2, 0, 9, 11, 7, 1, 4, 8, 8, 2, 13]
GROUPS = [row // 4 for row in range(16)]
#: The same responses as pairs: chosen, rejected, chosen, ...
PAIRS = [row // 2 for row in range(16)]
BETA, LOW, HIGH = 0.6, 0.2, 0.28
POLICY, OLD, REFERENCE = TabularPolicy(1), TabularPolicy(1), TabularPolicy(3)
# So near that ratios fall between the two upper clips too.
OLD.table.data += 0.3 * TabularPolicy(2).table.detach()


@dataclass
class Case:
    """What a gradient coefficient may read: of response i and its token t."""

    old_policy: TabularPolicy
    logprobs: Tensor = field(init=False)
    old: Tensor = field(init=False)
    ref: Tensor = field(init=False)
    advantages: Tensor = field(init=False)
    accepted: Tensor = field(init=False)
    of_responses: Tensor = field(init=False)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(7)
        self.logprobs = token_logprobs(POLICY, NUMBERS)
        self.old = token_logprobs(self.old_policy, NUMBERS)
        self.ref = token_logprobs(REFERENCE, NUMBERS)
        # Some tokens just inside and some just outside the clip, whichever way the policies differ.
        self.advantages = torch.randn(16, 3, generator=generator, dtype=torch.float64)
        self.of_responses = torch.randn(16, 1, generator=torch.Generator().manual_seed(8), dtype=torch.float64).expand(
            -1, 3
        )
        self.accepted = (torch.rand(16, 1, generator=generator) < 0.5).double().expand(-1, 3)

    def length(self, i: int) -> int:
        return len(RESPONSES[NUMBERS[i]])

    def ratio(self, i: int, t: int) -> float:
        return float((self.logprobs[i, t] - self.old[i, t]).exp())

    def active(self, i: int, t: int, low: float, high: float) -> bool:
        ratio, advantage = self.ratio(i, t), float(self.advantages[i, t])
        return not (advantage > 0 and ratio > 1 + high) and not (advantage < 0 and ratio < 1 - low)

    def surrogate(self, i: int, t: int, low: float = LOW, high: float = LOW) -> float:
        return self.ratio(i, t) * float(self.advantages[i, t]) * self.active(i, t, low, high)

    def pull(self, i: int, t: int) -> float:
        """π_ref/π_θ − 1."""
        return float((self.ref[i, t] - self.logprobs[i, t]).exp()) - 1

    def score(self, i: int, mean: bool) -> float:
        """Σ_t log π_θ/π_ref, or its mean."""
        total = float((self.logprobs[i] - self.ref[i]).sum())
        return total / self.length(i) if mean else total

    def sigma(self, i: int, mean: bool, beta: float = BETA) -> float:
        """ς = σ(β m⁻ − β m⁺) of the pair that response i belongs to."""
        chosen, rejected = i - i % 2, i - i % 2 + 1
        difference = beta * (self.score(rejected, mean) - self.score(chosen, mean))
        return float(torch.sigmoid(torch.tensor(difference, dtype=torch.float64)))

    def sign(self, i: int) -> int:
        return 1 if i % 2 == 0 else -1


def per_response(case: Case, i: int) -> float:
    """1 / (N |y|)."""
    return 1 / (16 * case.length(i))


def per_group_token(case: Case, i: int) -> float:
    """1 / (groups Σ_{j in group} |y_j|)."""
    return 1 / (4 * sum(case.length(j) for j in range(16) if GROUPS[j] == GROUPS[i]))


def per_token(case: Case, i: int) -> float:
    """1 / Σ|y|."""
    return 1 / sum(case.length(j) for j in range(16))


def per_pair(case: Case, i: int) -> float:
    """1 / pairs."""
    return 1 / 8


def per_pair_token(case: Case, i: int) -> float:
    """1 / (pairs |y|)."""
    return 1 / (8 * case.length(i))


Coefficient = Callable[[Case, int, int], float]


@dataclass
class Row:
    """One line of the table.

    Args:
        make: the module.
        weight: w_i.
        gc: GC_{i,t} off policy.
        on_policy: GC_{i,t} at θ = θ_old, where the table prints a simpler one.
        mutants: wrong (weight, gc), each of which must be told from the right one.
        reads: what stands for the advantages: 𝕀 for RFT.
    """

    make: Callable[[], Any]
    weight: Callable[[Case, int], float]
    gc: Coefficient
    mutants: list[tuple[Callable[[Case, int], float], Coefficient]]
    on_policy: Coefficient | None = None
    reads: str = "advantages"


def one(case: Case, i: int, t: int) -> float:
    return 1.0


def accepted(case: Case, i: int, t: int) -> float:
    return float(case.accepted[i, t])


def advantage(case: Case, i: int, t: int) -> float:
    return float(case.advantages[i, t])


def reinforce_with_ratio(case: Case, i: int, t: int) -> float:
    return case.ratio(i, t) * float(case.advantages[i, t])


TABLE = {
    "SFT": Row(SFT, per_response, one, [(per_token, one), (per_response, lambda c, i, t: -1.0)]),
    "RFT": Row(RFT, per_response, accepted, [(per_response, one), (per_token, accepted)], reads="accepted"),
    "online RFT": Row(
        lambda: RFT(online=True),
        per_response,
        accepted,
        [(per_response, lambda c, i, t: 2 * accepted(c, i, t) - 1)],
        reads="accepted",
    ),
    "DPO": Row(
        lambda: DPO(beta=BETA),
        per_pair_token,
        lambda c, i, t: c.sign(i) * BETA * c.sigma(i, mean=True),
        # The paper's printed coefficient: no β; and then no mean in ς either.
        [
            (per_pair_token, lambda c, i, t: c.sign(i) * c.sigma(i, mean=True)),
            (per_pair_token, lambda c, i, t: c.sign(i) * BETA * c.sigma(i, mean=False)),
            (per_pair_token, lambda c, i, t: c.sign(i) * BETA * (1 - c.sigma(i, mean=True))),
            (per_pair, lambda c, i, t: c.sign(i) * BETA * c.sigma(i, mean=True)),
        ],
    ),
    "DPO with sums": Row(
        lambda: DPO(beta=BETA, length_normalize=False),
        per_pair,
        lambda c, i, t: c.sign(i) * BETA * c.sigma(i, mean=False),
        [
            (per_pair_token, lambda c, i, t: c.sign(i) * BETA * c.sigma(i, mean=False)),
            (per_pair, lambda c, i, t: c.sign(i) * BETA * c.sigma(i, mean=True)),
        ],
    ),
    "PPO": Row(
        lambda: PPO(clip_low=LOW, kl_coef=0.0),
        per_response,
        lambda c, i, t: c.surrogate(i, t),
        [(per_response, reinforce_with_ratio), (per_response, lambda c, i, t: c.surrogate(i, t, high=HIGH))],
        on_policy=advantage,
    ),
    "GRPO": Row(
        lambda: GRPO(clip_low=LOW, kl_coef=BETA),
        per_response,
        lambda c, i, t: c.surrogate(i, t) + BETA * c.pull(i, t),
        [
            (per_response, lambda c, i, t: c.surrogate(i, t) + c.pull(i, t)),
            (per_response, lambda c, i, t: c.surrogate(i, t) - BETA * c.pull(i, t)),
            (per_response, lambda c, i, t: c.surrogate(i, t)),
        ],
        on_policy=lambda c, i, t: advantage(c, i, t) + BETA * c.pull(i, t),
    ),
    "GRPO, the KL term alone": Row(
        lambda: NoSurrogate(kl_coef=1.0),
        per_response,
        lambda c, i, t: c.pull(i, t),
        [(per_response, lambda c, i, t: float(c.ref[i, t] - c.logprobs[i, t]))],
    ),
    "DAPO": Row(
        DAPO,
        per_group_token,
        lambda c, i, t: c.surrogate(i, t, LOW, HIGH),
        [
            (per_group_token, lambda c, i, t: c.surrogate(i, t, LOW, LOW)),
            (per_response, lambda c, i, t: c.surrogate(i, t, LOW, HIGH)),
            (per_token, lambda c, i, t: c.surrogate(i, t, LOW, HIGH)),
        ],
        on_policy=advantage,
    ),
    "DAPO, the batch reading": Row(
        lambda: DAPO(reduction="token_mean"),
        per_token,
        lambda c, i, t: c.surrogate(i, t, LOW, HIGH),
        [(per_group_token, lambda c, i, t: c.surrogate(i, t, LOW, HIGH))],
        on_policy=advantage,
    ),
}


class NoSurrogate(GRPO):
    """What is left of GRPO without its first term."""

    def surrogate(self, batch, logprobs):
        return torch.zeros_like(logprobs)


def minibatch(case: Case, module: Any, reads: str) -> Microbatch:
    """Return all responses as the module would be served them."""
    table = rows(NUMBERS)
    mask = table["response_mask"]
    groups = torch.tensor(PAIRS if isinstance(module, PairModule) else GROUPS)
    kind: Any = PreferenceBatch if isinstance(module, PairModule) else Microbatch
    return kind(
        **table,
        group_ids=groups,
        temperature=1.0,
        weights=token_weights(mask, groups, module.reduction, batch_totals(mask, groups)),
        old_logprobs=case.old,
        ref_logprobs=case.ref,
        advantages=getattr(case, reads),
    )


@pytest.mark.parametrize("place", ["on policy", "off policy"])
@pytest.mark.parametrize("name", TABLE)
def test_the_gradient_is_the_notebooks(name, place):
    check(TABLE[name], place)


def check(row: Row, place: str) -> None:
    """Compare a module's gradient with the loop over single tokens, and off policy the loop with its mutants."""
    case = Case(POLICY if place == "on policy" else OLD)
    module = row.make()
    actual = module_gradient(module, POLICY, minibatch(case, module, row.reads))
    gc = row.on_policy if place == "on policy" and row.on_policy else row.gc

    def expected(weight: Callable[[Case, int], float], coefficient: Coefficient) -> Tensor:
        return slow_gradient(POLICY, NUMBERS, lambda i: weight(case, i), lambda i, t: coefficient(case, i, t))

    assert_same(actual, expected(row.weight, gc))
    assert_same(expected(row.weight, row.gc), expected(row.weight, gc))  # the simpler form is the same number
    if place == "off policy":
        for weight, coefficient in row.mutants:
            with pytest.raises(AssertionError):
                assert_same(actual, expected(weight, coefficient), relative=1e-6)


def test_off_policy_the_clip_binds_on_both_sides_here():
    """Otherwise the rows above would not tell the clips apart."""
    case = Case(OLD)
    tokens = [(i, t) for i in range(16) for t in range(case.length(i))]
    ratios = [(case.ratio(i, t), float(case.advantages[i, t])) for i, t in tokens]
    assert any(ratio > 1.28 and a > 0 for ratio, a in ratios)
    assert any(1.2 < ratio < 1.28 and a > 0 for ratio, a in ratios)
    assert any(ratio < 0.8 and a < 0 for ratio, a in ratios)
    assert any(ratio > 1.28 and a < 0 for ratio, a in ratios)
    assert any(ratio < 0.8 and a > 0 for ratio, a in ratios)

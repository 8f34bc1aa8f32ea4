"""Identities between algorithms: two gradients, or two advantages, that must be one. `python -m tests.identities` prints their errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rl_lightning.algorithms import (
    CISPO,
    DPO,
    DPPO,
    GRPO,
    GSPO,
    IPO,
    ORPO,
    SAPO,
    Distillation,
    ReinforcePlusPlus,
    RobustDPO,
    SimPO,
)
from rl_lightning.functional import batch_totals, clipped_surrogate, group_normalize, masked_whiten, token_weights
from rl_lightning.types import Microbatch, PreferenceBatch
from tests.language import LONGEST, RESPONSES, TabularPolicy, module_gradient, rows, token_logprobs

NUMBERS = [0, 3, 14, 1, 5, 2, 0, 9, 11, 7, 1, 4, 8, 8, 2, 13]
GROUPS, PAIRS = torch.arange(16) // 4, torch.arange(16) // 2
POLICY, OLD, REFERENCE = TabularPolicy(1), TabularPolicy(1), TabularPolicy(3)
OLD.table.data += 0.3 * TabularPolicy(2).table.detach()
HERE, THERE, REF = (token_logprobs(one, NUMBERS) for one in (POLICY, OLD, REFERENCE))
TABLE = rows(NUMBERS)
MASK = TABLE["response_mask"]
_RANDOM = torch.Generator().manual_seed(7)
ADVANTAGES = torch.randn(16, 1, generator=_RANDOM, dtype=torch.float64).expand(16, LONGEST).contiguous()
REWARDS = torch.rand(16, generator=_RANDOM, dtype=torch.float64)
BINARY = torch.tensor([1.0, 0.0, 1.0, 0.0] * 4, dtype=torch.float64)
INFINITE = float("inf")


@dataclass
class Identity:
    """Two ways to compute one thing.

    Args:
        name: what it says.
        left, right: the two.
        other: a neighbour of the left one that is not the same; the comparison must see that.
        tolerance: largest relative difference.
    """

    name: str
    left: Callable[[], Tensor]
    right: Callable[[], Tensor]
    other: Callable[[], Tensor]
    tolerance: float = 1e-12

    @property
    def error(self) -> float:
        """The largest difference, relative to the largest number on the right, or to 1 where that is 0."""
        return difference(self.left(), self.right())


def difference(left: Tensor, right: Tensor) -> float:
    """Return the largest difference, relative to the largest number on the right, or to 1 where that is 0."""
    return float((left - right).abs().max()) / (float(right.abs().max()) or 1.0)


def gradient(module: Any, old: Tensor = THERE, advantages: Tensor = ADVANTAGES, mask: Tensor = MASK) -> Tensor:
    """Return ∇J of an online algorithm over the 16 responses."""
    batch = Microbatch(
        **{**TABLE, "response_mask": mask},
        group_ids=GROUPS,
        temperature=1.0,
        weights=token_weights(mask, GROUPS, module.reduction, batch_totals(mask, GROUPS), LONGEST),
        old_logprobs=old,
        ref_logprobs=REF,
        advantages=advantages,
    )
    return module_gradient(module, POLICY, batch)


def of_pairs(module: Any, ref: Tensor = REF) -> Tensor:
    """Return ∇J of an algorithm on pairs over the 8 pairs."""
    weights = token_weights(MASK, PAIRS, module.reduction, batch_totals(MASK, PAIRS))
    batch = PreferenceBatch(**TABLE, group_ids=PAIRS, temperature=1.0, weights=weights, ref_logprobs=ref)
    return module_gradient(module, POLICY, batch)


def plain(**options: Any) -> GRPO:
    return GRPO(kl_coef=0.0, **options)


def no_clip(**options: Any) -> GRPO:
    return plain(clip_low=1.0, clip_high=INFINITE, **options)


def reinforce(**options: Any) -> CISPO:
    return CISPO(weight_low=1.0, weight_high=1.0, **options)


def normalized(**options: Any) -> Tensor:
    return group_normalize(options.pop("rewards", REWARDS), GROUPS, scale="none", **options)


def on_policy() -> Iterator[Identity]:
    """Yield what one update a rollout makes one algorithm."""
    for name, make, reduction in (
        ("GSPO", GSPO, "seq_mean"),
        ("SAPO", SAPO, "seq_mean"),
        ("CISPO", CISPO, "group_token_mean"),
        ("DPPO-TV", DPPO, "constant"),
        ("REINFORCE", reinforce, "group_token_mean"),
        ("REINFORCE++, its A given", ReinforcePlusPlus, "token_mean"),
        ("distillation, its A given", lambda: Distillation(teacher="embedded"), "token_mean"),
    ):
        yield Identity(
            f"{name} at θ = θ_old is GRPO, reduction {reduction}",
            lambda make=make: gradient(make(), HERE),
            lambda reduction=reduction: gradient(plain(reduction=reduction), HERE),
            lambda make=make: gradient(make(), THERE if make is not reinforce else HERE, ADVANTAGES.flip(0)),
        )


def off_policy() -> Iterator[Identity]:
    """Yield what holds at any θ."""
    one = torch.zeros_like(MASK)
    one[:, 0] = True
    yield Identity(
        "CISPO without bounds is GRPO without a clip",
        lambda: gradient(CISPO(weight_high=INFINITE, reduction="seq_mean")),
        lambda: gradient(no_clip()),
        lambda: gradient(CISPO(weight_high=1.2, reduction="seq_mean")),
    )
    yield Identity(
        "CISPO with both bounds at 1 is A log π_θ, whatever θ_old is",
        lambda: gradient(reinforce()),
        lambda: gradient(reinforce(), HERE),
        lambda: gradient(CISPO(weight_low=0.9, weight_high=1.0)),
    )
    yield Identity(
        "DPPO-TV with δ = 1 and C = ∞ is GRPO without a clip",
        lambda: gradient(DPPO(delta=1.0, weight_high=INFINITE, reduction="seq_mean")),
        lambda: gradient(no_clip()),
        lambda: gradient(DPPO(delta=0.05, weight_high=INFINITE, reduction="seq_mean")),
    )
    yield Identity(
        "SAPO as τ → 0 is GRPO without a clip",
        lambda: gradient(SAPO(1e-5, 1e-5)),
        lambda: gradient(no_clip()),
        lambda: gradient(SAPO()),
        tolerance=1e-9,
    )
    yield Identity(
        "GSPO of responses of one token is GRPO",
        lambda: gradient(GSPO(clip_low=0.2, clip_high=0.2), mask=one),
        lambda: gradient(plain(), mask=one),
        lambda: gradient(GSPO(clip_low=0.2, clip_high=0.1), mask=one),
    )
    yield Identity(
        "GRPO with the ratio of `sequence_mean` and GSPO's clips is GSPO",
        lambda: gradient(plain(ratio_level="sequence_mean", clip_low=0.05, clip_high=0.08)),
        lambda: gradient(GSPO(clip_low=0.05, clip_high=0.08)),
        lambda: gradient(plain(clip_low=0.05, clip_high=0.08)),
    )
    yield Identity(
        "two-sided clip at δ is the dual clip at c = δ, where A < 0",
        lambda: clipped_surrogate(SWEEP, torch.tensor(-1.0).double(), 0.2, 0.2, 4.0),
        lambda: torch.minimum(-SWEEP.clamp(max=4.0), -SWEEP.clamp(0.8, 1.2)),
        lambda: clipped_surrogate(SWEEP, torch.tensor(-1.0).double(), 0.2, 0.2),
    )
    teacher = REF - HERE
    yield Identity(
        "distillation at θ = θ_old is k2 of the teacher in the loss, token by token",
        lambda: gradient(Distillation(teacher="embedded"), HERE, teacher),
        lambda: gradient(GRPO(kl_coef=1.0, kl_estimator="k2", reduction="token_mean"), HERE, 0 * ADVANTAGES),
        lambda: gradient(Distillation(teacher="embedded"), THERE, teacher),
    )
    yield Identity(
        "distillation with A at the present θ and no clip is rho_k3 in the loss, off policy",
        lambda: gradient(Distillation(teacher="embedded", clip_low=1.0, clip_high=INFINITE), THERE, teacher),
        lambda: gradient(GRPO(kl_coef=1.0, kl_estimator="rho_k3", reduction="token_mean"), THERE, 0 * ADVANTAGES),
        lambda: gradient(Distillation(teacher="embedded", clip_low=0.1, clip_high=0.1), THERE, teacher),
    )


SWEEP = torch.linspace(0.05, 6, 200, dtype=torch.float64)


def of_advantages() -> Iterator[Identity]:
    """Yield what holds of advantages."""
    lengths = MASK.sum(1)
    yield Identity(
        "OPO at equal lengths is Dr.GRPO",
        lambda: normalized(baseline="length", lengths=torch.full((16,), 7)),
        lambda: normalized(),
        lambda: normalized(baseline="length", lengths=lengths),
    )
    yield Identity(
        "RLOO is G/(G − 1) times Dr.GRPO",
        lambda: normalized(baseline="others"),
        lambda: 4 / 3 * normalized(),
        lambda: normalized(),
    )
    yield Identity(
        "MaxRL where half of a group is right is twice Dr.GRPO",
        lambda: group_normalize(BINARY, GROUPS, scale="mean", eps=0.0),
        lambda: 2 * normalized(rewards=BINARY),
        lambda: group_normalize(BINARY, GROUPS, eps=0.0),
    )
    equal = torch.ones_like(MASK)
    yield Identity(
        "REINFORCE++ with β = 0, γ = 1 and equal lengths is (R − mean)/std of the rollout, but for the divisor",
        lambda: masked_whiten(REWARDS[:, None].expand(-1, 3).contiguous(), equal, eps=0.0)[:, 0],
        lambda: (REWARDS - REWARDS.mean()) / REWARDS.std(correction=0) * (47 / 48) ** 0.5,
        lambda: (REWARDS - REWARDS.mean()) / REWARDS.std(),
    )
    yield Identity(
        "whitening makes mean 0 and deviation 1 over tokens",
        lambda: moments(masked_whiten(ADVANTAGES, MASK, eps=0.0)),
        lambda: torch.tensor([0.0, 1.0], dtype=torch.float64),
        lambda: moments(ADVANTAGES),
    )


def moments(advantages: Tensor) -> Tensor:
    return torch.stack([advantages[MASK].mean(), advantages[MASK].std()])


def of_preferences() -> Iterator[Identity]:
    """Yield what holds of algorithms on pairs."""
    yield Identity(
        "robust DPO at ε = 0 is DPO",
        lambda: of_pairs(RobustDPO(beta=0.6, label_smoothing=0.0)),
        lambda: of_pairs(DPO(beta=0.6)),
        lambda: of_pairs(RobustDPO(beta=0.6)),
    )
    yield Identity(
        "robust DPO of a pair and of the same one turned round, (1 − ε) to ε, is DPO",
        lambda: mixed(RobustDPO(beta=0.6, label_smoothing=0.2)),
        lambda: of_pairs(DPO(beta=0.6)),
        lambda: mixed(DPO(beta=0.6, label_smoothing=0.2)),
    )
    yield Identity(
        "SimPO with γ = 0 is DPO of means with a reference that is uniform a token",
        lambda: of_pairs(SimPO(beta=0.6, margin=0.0)),
        lambda: of_pairs(DPO(beta=0.6), torch.full_like(REF, -1.1)),
        lambda: of_pairs(SimPO(beta=0.6)),
    )
    yield Identity(
        "LD-DPO at α = 1 is DPO",
        lambda: of_pairs(DPO(beta=0.6, length_normalize=False, beyond_shorter=1.0)),
        lambda: of_pairs(DPO(beta=0.6, length_normalize=False)),
        lambda: of_pairs(DPO(beta=0.6, length_normalize=False, beyond_shorter=0.9)),
    )
    yield Identity(
        "ORPO at λ = 0 is fine-tuning on what was chosen",
        lambda: of_pairs(ORPO(beta=0.0)),
        lambda: of_pairs(SimPO(beta=1e-300, sft_coef=1.0)),
        lambda: of_pairs(ORPO(beta=0.1)),
    )

    def slope(gap: float) -> Tensor:
        chosen = torch.tensor([gap], dtype=torch.float64, requires_grad=True)
        IPO(tau=1.0).of_pair(chosen, torch.zeros(1, dtype=torch.float64)).sum().backward()
        return chosen.grad

    yield Identity(
        "IPO's gradient is 0 at h = 1/(2τ)",
        lambda: slope(0.5),
        lambda: torch.zeros(1, dtype=torch.float64),
        lambda: slope(0.4),
    )


def mixed(module: Any) -> Tensor:
    """Return 0.8 times the gradient of the pairs, and 0.2 times that of the pairs turned round."""
    right = of_pairs(module)
    turned = type(module).of_pair
    module.of_pair = lambda chosen, rejected: turned(module, rejected, chosen)
    return 0.8 * right + 0.2 * of_pairs(module)


IDENTITIES = [*on_policy(), *off_policy(), *of_advantages(), *of_preferences()]

if __name__ == "__main__":
    for identity in IDENTITIES:
        print(f"| {identity.name} | {identity.error:.0e} |")
    print(f"largest error: {max(one.error for one in IDENTITIES):.1e}, of {len(IDENTITIES)} identities")
    assert len(RESPONSES) == 15

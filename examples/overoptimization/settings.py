"""Sizes of the study, and the runs it is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rl_lightning.functional.ensemble import Combination

#: Kinds of proxies: fifteen weights; a transformer of one layer; one of the embedded policy's size.
KINDS = ("linear", "tiny", "big")
#: Members of the ensemble of one kind, and of the ensemble of mixed kinds; each learnt from pairs of its own.
ALIKE = ("tiny-1000", "tiny-1000-1", "tiny-1000-2", "tiny-1000-3")
MIXED = ("linear-1000", "tiny-1000-1", "big-1000-2")
#: Rewards that are no proxy, by name: dotted paths.
FUNCTIONS = {
    "gold": "examples.overoptimization.gold.gold",
    "right": "rl_lightning.rewards.functions.final_answer",
    "noisy": "examples.overoptimization.gold.noisy",
    "flipped": "examples.overoptimization.gold.flipped",
    "short": "examples.overoptimization.gold.right_and_short",
}


@dataclass(frozen=True)
class Sizes:
    """How much is sampled and trained.

    Args:
        pool_prompts, pool_answers: of the pool for best of n.
        pair_prompts: two responses to each make a pair, unless both are worth the same.
        held_out: pairs that proxies are measured on.
        prompts, group: of a rollout.
        rollouts: of a run.
        start_answers: of the start policy to each training prompt; their mean is taken off the gold reward of a run.
        bin: rollouts that a point of a curve is made of.
        lr: of the policy.
        max_new_tokens: longest response.
    """

    pool_prompts: int = 80
    pool_answers: int = 1024
    pair_prompts: int = 10_000
    held_out: int = 800
    prompts: int = 16
    group: int = 8
    rollouts: int = 60
    start_answers: int = 16
    bin: int = 5
    lr: float = 1e-4
    max_new_tokens: int = 40

    @property
    def best_of(self) -> list[int]:
        """Numbers n of best of n: the powers of two, and 3, up to a quarter of the pool's answers."""
        return sorted({3, *(2**power for power in range(30) if 2**power <= self.pool_answers // 4)})


QUICK = Sizes(
    pool_prompts=40, pool_answers=256, pair_prompts=3_000, held_out=300, rollouts=30, start_answers=8, lr=2e-4
)  # fmt: skip


@dataclass(frozen=True)
class Proxy:
    """A reward model of the study.

    Args:
        name: kind, pairs and, for one beside the first, its number: `tiny-1000-2`.
    """

    name: str

    @property
    def kind(self) -> str:
        """One of `KINDS`."""
        return self.name.split("-")[0]

    @property
    def pairs(self) -> int:
        """How many pairs it learns from."""
        return int(self.name.split("-")[1])

    @property
    def number(self) -> int:
        """Which of several; each has other pairs and other first weights."""
        return int([*self.name.split("-"), "0"][2])


@dataclass(frozen=True)
class Run:
    """A training run.

    Args:
        name: of the run.
        rewards: what is trained on: a proxy, one of `FUNCTIONS`, or the members of an ensemble.
        how: how an ensemble is combined.
        coef: of the variance.
        algorithm: of the library.
        kl_coef: weight of the divergence in the loss, estimated by k3.
        lr: of the policy; that of the sizes if None.
        rounds: the proxy is trained again, on the policy's own samples too, after each share of the rollouts.
        panel: of the picture; see `draw`.
    """

    name: str
    rewards: tuple[str, ...]
    how: Combination = "mean"
    coef: float = 1.0
    algorithm: Literal["GRPO", "PPO"] = "GRPO"
    kl_coef: float = 0.0
    lr: float | None = None
    rounds: int = 1
    panel: str = "GRPO"

    @property
    def clean(self) -> bool:
        """Whether what is trained on is sound, so that no alarm should ring."""
        return self.rewards[0] in FUNCTIONS


@dataclass(frozen=True)
class Study:
    """Everything that is trained for one seed.

    Args:
        sizes: of samples and runs.
        proxies: by name.
        runs: of the policy.
        watchers: proxies whose disagreement, and whose mean, monitors look at.
    """

    sizes: Sizes
    proxies: tuple[str, ...]
    runs: tuple[Run, ...]
    watchers: tuple[str, ...]


def _alone(*names: str) -> list[Run]:
    return [Run(name, (name,), panel="controls" if name in FUNCTIONS else "GRPO") for name in names]


def _ensemble(name: str, members: tuple[str, ...], how: Combination, coef: float = 1.0) -> Run:
    return Run(name, members, how, coef, panel="ensembles")


FULL = Study(
    Sizes(),
    tuple(dict.fromkeys([f"{kind}-{pairs}" for pairs in (50, 200, 1000, 4000) for kind in KINDS] + [*ALIKE, *MIXED])),
    (
        *_alone("big-4000", "tiny-1000", "gold", "right"),
        Run("PPO tiny-1000", ("tiny-1000",), algorithm="PPO", panel="PPO"),
        _ensemble("mean of 4 tiny", ALIKE, "mean"),
        _ensemble("worst of 4 tiny", ALIKE, "min"),
        _ensemble("mean of 3 kinds", MIXED, "mean"),
        Run("retrained", ("tiny-1000",), rounds=3, panel="ensembles"),
        Run("kl_coef 0.5", ("tiny-1000",), kl_coef=0.5, panel="kl_coef"),
        Run("kl_coef 0.1", ("tiny-1000",), kl_coef=0.1, panel="kl_coef"),
        *_alone("noisy", "flipped", "short", "tiny-4000", "tiny-200", "linear-4000", "big-200", "big-1000"),
        Run("PPO big-4000", ("big-4000",), algorithm="PPO", panel="PPO"),
        Run("PPO gold", ("gold",), algorithm="PPO", panel="PPO"),
        _ensemble("worst of 3 kinds", MIXED, "min"),
        _ensemble("mean − 0.5 var of 4 tiny", ALIKE, "mean_minus_var", 0.5),
        Run("gold, lr × 5", ("gold",), lr=5e-4, panel="controls"),
        Run("right, lr × 5", ("right",), lr=5e-4, panel="controls"),
        Run("big-4000, lr × 0.3", ("big-4000",), lr=3e-5, panel="kl_coef"),
    ),
    ALIKE,
)
#: A part of it for a first look. Ensembles have members that learnt from few pairs.
SHORT = Study(
    QUICK,
    ("linear-200", "tiny-200", "linear-1000", "tiny-1000"),
    (
        *_alone("tiny-1000", "gold", "linear-1000", "right"),
        Run("PPO tiny-1000", ("tiny-1000",), algorithm="PPO", panel="PPO"),
        _ensemble("mean of 2 kinds", ("linear-200", "tiny-200"), "mean"),
        Run("kl_coef 0.5", ("tiny-1000",), kl_coef=0.5, panel="kl_coef"),
        Run("retrained", ("tiny-200",), rounds=3, panel="ensembles"),
    ),
    ("linear-200", "tiny-200", "linear-1000"),
)

"""Experiments whose outcome is a formula: what a critic costs (E7), difficulty and scale (E8), estimators of the divergence (E9)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import rl_lightning as rl
from examples.experiments.rig import DATA, MODEL, Logged, trainer
from rl_lightning.functional import group_normalize, kl_penalty
from rl_lightning.functional.kl import KLEstimator

#: Of E8: answers to a prompt, prompts of each difficulty.
_GROUP, _GROUPS = 256, 400
#: Of E9: tokens of the one state, samples for a mean gradient, and of a step of a descent.
_TOKENS, _MANY, _FEW, _STEPS, _RATE = 16, 1_000_000, 256, 300, 0.5


def cost(seed: int, place: Path) -> dict[str, float]:
    """Return the bytes that PPO and GRPO train with after one step, and the ratio that is predicted."""
    found: dict[str, float] = {}
    ppo = {**MODEL, "critic": "own", "critic_lr": 1e-3}
    for name, module in (("GRPO", rl.GRPO(**MODEL)), ("PPO", rl.PPO(**ppo))):
        callbacks: list[Any] = [rl.GroupNormalize()] if name == "GRPO" else []
        run = trainer(place / name, seed, [*callbacks, Logged()], max_epochs=1)
        run.fit(module, rl.RolloutDataModule(**DATA, seed=seed))
        trained = [one for one in module.parameters() if one.requires_grad]
        moments = [value for state in run.optimizers[0].state.values() for value in state.values() if value.dim()]
        found[name] = float(sum(2 * one.nbytes for one in trained) + sum(value.nbytes for value in moments))
        if name == "GRPO":
            whole = sum(one.numel() for one in trained)
        else:
            value = sum(one.numel() for one in trained) - whole
            # The critic is the policy without its head, with a head of one number: both counted from the model itself.
            body = sum(one.numel() for one in module.policy.base_model.parameters())
            found["predicted"] = (whole + body + module.policy.config.hidden_size + 1) / whole
            found["critic parameters"] = float(value)
    return found | {"ratio": found["PPO"] / found["GRPO"]}


def difficulty(seed: int, place: Path) -> dict[str, float]:
    """Return Σ|A| of groups at p = 0.05 over that of groups at p = 0.5, by scale, and the closed form."""
    draws = torch.Generator().manual_seed(seed)
    group_ids = torch.arange(_GROUPS).repeat_interleave(_GROUP)
    found = {}
    for scale in ("std", "none"):
        total = []
        for rate in (0.05, 0.5):
            rewards = (torch.rand(_GROUPS * _GROUP, generator=draws) < rate).double()
            total.append(float(group_normalize(rewards, group_ids, scale=scale).abs().sum()))  # type: ignore[arg-type]
        found[scale] = total[0] / total[1]
    hard, medium = 0.05 * 0.95, 0.25
    return found | {"std, formula": (hard / medium) ** 0.5, "none, formula": hard / medium}


def divergence(own: Tensor, other: Tensor) -> Tensor:
    """Return KL(p‖q) from logits, over the last dimension."""
    logp, logq = own.log_softmax(-1), other.log_softmax(-1)
    return (logp.exp() * (logp - logq)).sum(-1)


def estimators(seed: int, place: Path) -> dict[str, float]:
    """Return how far the mean gradient of each estimator is from what it is said to be, as a share of the norm of the reverse one's."""
    draws = torch.Generator().manual_seed(seed)
    start, reference = (torch.randn(_TOKENS, generator=draws, dtype=torch.float64) for _ in range(2))
    logits = start.clone().requires_grad_()
    (reverse,) = torch.autograd.grad(divergence(logits, reference), logits)
    (forward,) = torch.autograd.grad(divergence(reference, logits), logits)
    said: dict[KLEstimator, Tensor] = {"k1": torch.zeros(_TOKENS), "k2": reverse, "k3": forward}
    tokens = torch.multinomial(logits.detach().softmax(0), _MANY, replacement=True, generator=draws)
    found = {}
    for name, expected in said.items():
        logprobs = logits.log_softmax(0)[tokens]
        value = kl_penalty(logprobs, reference.log_softmax(0)[tokens], name, logprobs - logprobs.detach())
        (gradient,) = torch.autograd.grad(value.mean(), logits)
        found[name] = float((gradient - expected).norm() / reverse.norm())
    return found


def descents(seed: int, place: Path) -> dict[str, float]:
    """Return the divergence that is left after a descent on each estimator, as a share of that at the start."""
    draws = torch.Generator().manual_seed(seed)
    reference = torch.randn(_TOKENS, generator=draws, dtype=torch.float64)
    away = torch.randn(_TOKENS, generator=draws, dtype=torch.float64)
    near, far = 0.0, 10.0
    for _ in range(60):  # the policy that is one nat away, in this direction
        middle = (near + far) / 2
        near, far = (middle, far) if float(divergence(reference + middle * away, reference)) < 1 else (near, middle)
    found = {}
    for name in ("k1 loss", "k2 loss", "k3 loss", "k1 reward", "k3 reward"):
        logits = (reference + near * away).clone()
        began = float(divergence(logits, reference))
        stream = torch.Generator().manual_seed(1000 + seed)
        for _ in range(_STEPS):
            logits = logits - _RATE * _gradient(name, logits, reference, stream)
        found[name] = float(divergence(logits, reference)) / began
    return found


def _gradient(name: str, logits: Tensor, reference: Tensor, stream: torch.Generator) -> Tensor:
    """Return the mean gradient of an estimator on a few samples: as a loss, or as a number that is taken off the reward, less its mean."""
    estimator, _, place = name.partition(" ")
    logits = logits.clone().requires_grad_()
    tokens = torch.multinomial(logits.detach().softmax(0), _FEW, replacement=True, generator=stream)
    logprobs = logits.log_softmax(0)[tokens]
    kind: KLEstimator = estimator  # type: ignore[assignment]
    value = kl_penalty(logprobs, reference.log_softmax(0)[tokens], kind, logprobs - logprobs.detach())
    if place == "reward":
        number = value.detach()
        value = (number - number.mean()) * logprobs
    (gradient,) = torch.autograd.grad(value.mean(), logits)
    return gradient

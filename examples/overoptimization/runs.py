"""Training runs against a reward, with everything recorded that monitors could look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

import rl_lightning as rl
from examples.overoptimization.proxies import reward, train
from examples.overoptimization.samples import Answers, pairs_of, trainer
from examples.overoptimization.settings import FUNCTIONS, Proxy, Run, Sizes
from rl_lightning.algorithms import PolicyModule
from rl_lightning.callbacks import EnsembleReward
from rl_lightning.data.sources.base import Example
from rl_lightning.data.sources.handed import ListedExamples
from rl_lightning.models import PolicyFiles, response_logits
from rl_lightning.types import Rollout

#: Optimizer steps over which the policy's learning rate rises.
_WARMUP = 5


@dataclass(frozen=True)
class Judged:
    """A proxy that has been trained.

    Args:
        where: its files.
        mean, deviation: of its scores of the pool.
        accuracy: on held-out pairs.
        scores: of the pool, (problems, responses).
    """

    where: str
    mean: float
    deviation: float
    accuracy: float
    scores: Tensor


@dataclass(frozen=True)
class Step:
    """A rollout of a run.

    Args:
        rows: prompt, response, whether it was cut off.
        answers: gold answers.
        rewards: (B,) what was trained on.
        gold, right: (B,).
        lengths: (B,) tokens.
        kl: (B,) nats: Σ_t KL(π‖π_start) over the whole vocabulary, at the prefixes of the response.
        entropy: nats a token.
    """

    rows: list[tuple[str, str, bool]]
    answers: list[object]
    rewards: Tensor
    gold: Tensor
    right: Tensor
    lengths: Tensor
    kl: Tensor
    entropy: float


class Record(rl.RolloutCallback):
    """Keeps every rollout, and measures how far the policy is from the embedded one, exactly.

    Args:
        rows: responses per forward pass.
    """

    def __init__(self, rows: int = 64) -> None:
        self.rows = rows
        self.steps: list[Step] = []
        self._start: nn.Module | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Load the start policy."""
        self._start = PolicyFiles("embedded").load(trainable=False)

    def on_rollout_end(self, trainer: Trainer, module: LightningModule, rollout: Rollout) -> None:
        """Keep a rollout, before it is trained on."""
        kl, entropy = [], torch.zeros((), dtype=torch.float64)
        policy = cast(PolicyModule, module)
        assert self._start is not None
        for rows in torch.arange(len(rollout)).split(self.rows):
            part = rollout.microbatch(rows)
            given = part.input_ids, part.attention_mask, part.response_length
            with policy.rollout_mode():
                own, start = (response_logits(one, *given).log_softmax(-1) for one in (policy.policy, self._start))
            mask = part.response_attention
            kl.append(((own.exp() * (own - start)).sum(-1) * mask).sum(1))
            entropy += (-(own.exp() * own).sum(-1) * mask).sum().double()
        self.steps.append(
            Step(
                list(zip(rollout.prompts, rollout.responses, rollout.truncated.tolist(), strict=True)),
                rollout.answers,
                rollout.rewards,
                rollout.reward_components["gold"],
                rollout.reward_components["right"],
                rollout.lengths,
                torch.cat(kl),
                float(entropy / rollout.lengths.sum()),
            )
        )


def train_run(
    run: Run,
    sizes: Sizes,
    judged: Mapping[str, Judged],
    pairs: Sequence[Example],
    examples: Sequence[Example],
    seed: int,
    place: Path,
) -> list[Step]:
    """Train a policy, and return its rollouts.

    Args:
        run: says on what.
        sizes: of rollouts.
        judged: the proxies.
        pairs: those that the proxy learnt from, for one that is trained again.
        examples: the problems, each for one rollout.
        seed: of samples and order.
        place: of files that are needed on the way.
    """
    policy, steps, share = "embedded", [], sizes.rollouts // run.rounds
    proxies = {name: judged[name].where for name in run.rewards if name in judged}
    for number in range(run.rounds):
        chosen = examples[number * share * sizes.prompts : (number + 1) * share * sizes.prompts]
        export = place / f"policy-{number}"
        last = number == run.rounds - 1
        steps += _fit(run, sizes, proxies, judged, policy, chosen, seed, place, None if last else export)
        if not last:
            policy = str(export)
            (name,) = run.rewards
            proxies = {
                name: train(Proxy(name), [*pairs, *own_pairs(steps, sizes.group)], seed, place / f"proxy-{number}")
            }
    if len(steps) < share * run.rounds:
        raise SystemExit(
            f"{run.name}: {len(steps)} of {share * run.rounds} rollouts were made; the same command makes the run anew"
        )
    return steps


def own_pairs(steps: Sequence[Step], group: int) -> list[Example]:
    """Return pairs of a policy's own samples, ranked by the gold reward: of the first four responses to each prompt, two pairs."""
    examples, texts, cut, gold = [], [], [], []
    for step in steps:
        for first in (start + shift for start in range(0, len(step.rows), group) for shift in (0, 2)):
            examples.append(Example(step.rows[first][0], str(step.answers[first])))
            texts += [text for _, text, _ in step.rows[first : first + 2]]
            cut += [short for _, _, short in step.rows[first : first + 2]]
            gold.append(step.gold[first : first + 2])
    table = torch.stack(gold)
    return pairs_of(Answers(examples, texts, cut, table, table))


def _fit(
    run: Run,
    sizes: Sizes,
    proxies: Mapping[str, str],
    judged: Mapping[str, Judged],
    policy: str,
    examples: Sequence[Example],
    seed: int,
    place: Path,
    export: Path | None,
) -> list[Step]:
    """Train a policy for as many rollouts as the examples last."""
    record = Record()
    callbacks: list[object] = [record]
    callbacks += [rl.GroupNormalize()] if run.algorithm == "GRPO" else []
    callbacks += [EnsembleReward(list(run.rewards), run.how, run.coef)] if len(run.rewards) > 1 else []
    callbacks += [rl.HFExport(str(export))] if export else []
    common = {
        "policy": policy,
        "kl_coef": run.kl_coef,
        "optimizer": {"lr": run.lr or sizes.lr, "warmup_steps": _WARMUP, "betas": (0.9, 0.99)},
    }
    module = rl.PPO(**common, critic_lr=1e-3, whiten_advantages=True) if run.algorithm == "PPO" else rl.GRPO(**common)
    data = rl.RolloutDataModule(
        prompts=ListedExamples({"train": list(examples)}),
        rewards=_rewards(run, proxies, judged),
        sampling={"max_new_tokens": sizes.max_new_tokens},
        prompts_per_rollout=sizes.prompts,
        group_size=sizes.group,
        seed=seed,
    )
    rollouts = len(examples) // sizes.prompts
    trainer(place, seed, max_epochs=rollouts, gradient_clip_val=1.0, callbacks=callbacks).fit(module, data)
    return record.steps


def _rewards(run: Run, proxies: Mapping[str, str], judged: Mapping[str, Judged]) -> list[dict[str, object]]:
    """Return the rewards of a run: gold and correctness, and what is trained on, in standard deviations of the pool."""
    alone = run.rewards[0] if len(run.rewards) == 1 else None
    listed: list[dict[str, object]] = [
        {"function": FUNCTIONS[name], "name": name, "weight": float(name == alone)} for name in ("gold", "right")
    ]
    for name in run.rewards:
        if name in proxies:
            listed.append(reward(name, proxies[name], 1 / judged[name].deviation if name == alone else 0.0))
        elif name not in ("gold", "right"):
            listed.append({"function": FUNCTIONS[name], "name": name, "weight": 1.0})
    return listed

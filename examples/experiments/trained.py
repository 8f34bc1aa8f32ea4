"""Experiments that train: E1 to E6. Each function trains all arms for one seed, and returns numbers by name."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import rl_lightning as rl
from examples.experiments.rig import DATA, MODEL, ROLLOUTS, Arm, Logged, last, run, tested, trainer
from examples.overoptimization.samples import sample
from examples.overoptimization.settings import Sizes
from rl_lightning.callbacks import DynamicSampling, OverlongFilter, OverlongShaping, RejectionSampling
from rl_lightning.data.sources import ChainSum
from rl_lightning.data.sources.base import Example
from rl_lightning.data.sources.handed import ListedExamples

#: The last quarter, and the last ten of forty rollouts.
_QUARTER = 0.25


def clip_higher(seed: int, place: Path) -> dict[str, float]:
    """E1."""
    found = {}
    for high in (0.2, 0.28, 0.5):
        arm = Arm(
            model={"clip_high": high, "optimizer": {"lr": 1e-4, "warmup_steps": 5}},
            data={"minibatch_size": 8},
            rollouts=20,
        )
        steps = run(arm, seed, place / str(high))
        found[f"clipped {high}"] = last(steps["policy/clip_fraction_high"], 1)
        found[f"entropy {high}"] = last(steps["policy/entropy"], _QUARTER)
    return found


def dynamic_sampling(seed: int, place: Path) -> dict[str, float]:
    """E2."""
    problems = [replace(one, response=None) for one in ChainSum(train_size=128, seed=1000 + seed).load("train")]
    right = sample(problems, 64, seed, Sizes(), place / "start").right
    group, count = 8, right.shape[1]
    kept = [
        1 - (math.comb(hits, group) + math.comb(count - hits, group)) / math.comb(count, group)
        for hits in right.sum(1).long().tolist()
    ]
    on = run(Arm(callbacks=lambda: [rl.GroupNormalize(), DynamicSampling()]), seed, place / "on")
    off = run(Arm(), seed, place / "off")
    # As many sampled answers as with dynamic sampling: whole rollouts.
    longer = round(on["rollout/answers"][-1] / (DATA["prompts_per_rollout"] * group))
    more = run(Arm(rollouts=longer), seed, place / "more")
    return {
        "kept": on["rollout/kept_fraction"][0],
        "kept, formula": sum(kept) / len(kept),
        "on": on["test/pass@1"][0],
        "off": off["test/pass@1"][0],
        "off, as many answers": more["test/pass@1"][0],
        "rollouts, as many answers": float(longer),
    }


def averaging(seed: int, place: Path) -> dict[str, float]:
    """E3."""
    found = {}
    for reduction in ("seq_mean", "token_mean", "constant"):
        steps = run(Arm(model={"reduction": reduction}), seed, place / reduction)
        found[reduction] = last(steps["wrong length"], _QUARTER)
        found[f"pass@1 {reduction}"] = steps["test/pass@1"][0]
    return found


def cut_off(seed: int, place: Path) -> dict[str, float]:
    """E4."""
    found = {}
    capped = {"sampling": {"max_new_tokens": 16}}
    for name, extra in (("nothing", []), ("shaping", [OverlongShaping(4)]), ("filter", [OverlongFilter()])):
        arm = Arm(data=capped, callbacks=lambda extra=extra: [rl.GroupNormalize(), *extra])  # type: ignore[misc]
        steps = run(arm, seed, place / name)
        found[name] = last(steps["rollout/truncated_fraction"], _QUARTER)
        found[f"pass@1 {name}"] = steps["test/pass@1"][0]
    return found


def rejection(seed: int, place: Path) -> dict[str, float]:
    """E5."""
    answers = ROLLOUTS * DATA["prompts_per_rollout"] * DATA["group_size"]
    accepted: dict[str, Any] = {"algorithm": "RFT", "callbacks": lambda: [RejectionSampling()]}
    grpo = run(Arm(), seed, place / "GRPO")
    options = {name: value for name, value in MODEL.items() if name != "kl_coef"}
    online = _online_rft(options, seed, place / "online", accepted)
    module = rl.RFT(**options)
    data = rl.RewardDataModule(
        group_size=DATA["group_size"],
        max_prompts=answers // DATA["group_size"],
        batch_size=DATA["prompts_per_rollout"] * DATA["group_size"],
        sampling=DATA["sampling"],
        evaluation=DATA["evaluation"],
        seed=seed,
    )
    fit = trainer(place / "RFT", seed, [RejectionSampling()], max_epochs=1, gradient_clip_val=1.0)
    fit.fit(module, data)
    offline = tested(fit, module, data)
    return {"GRPO": grpo["test/pass@1"][0], "online RFT": online["test/pass@1"][0], "RFT": offline["test/pass@1"][0]}


def _online_rft(options: dict[str, Any], seed: int, place: Path, arm: dict[str, Any]) -> dict[str, list[float]]:
    """Train RFT on the policy's own samples; it has no divergence to switch off."""
    logged, module = Logged(), rl.RFT(online=True, **options)
    data = rl.RolloutDataModule(**DATA, seed=seed)
    fit = trainer(place, seed, [*arm["callbacks"](), logged], max_epochs=ROLLOUTS, gradient_clip_val=1.0)
    fit.fit(module, data)
    return dict(logged.steps) | tested(fit, module, data)


def margins(seed: int, place: Path) -> dict[str, float]:
    """E6."""
    problems = [replace(one, response=None) for one in ChainSum(train_size=700, seed=1000 + seed).load("train")]
    answers = sample(problems, 2, seed, Sizes(), place / "answers")
    draws, pairs = random.Random(seed), []
    for number, example in enumerate(problems):
        short, long = sorted(answers.texts[2 * number : 2 * number + 2], key=len)
        if len(short) == len(long):
            continue
        chosen, rejected = (long, short) if draws.random() < 0.8 else (short, long)
        pairs.append(Example(example.prompt, example.answer, chosen, rejected=rejected))
    before = sum(map(len, answers.texts)) / len(answers.texts)
    found = {"length before": before, "pairs": float(len(pairs))}
    for name, length_normalize, beta in (("mean", True, 1.3), ("sum", False, 0.1)):
        module = rl.DPO(policy="embedded", length_normalize=length_normalize, beta=beta, optimizer={"lr": 1e-4})
        data = rl.RewardDataModule(
            prompts=ListedExamples({"train": pairs[:-64], "test": pairs[-64:]}),
            origin="files",
            rewards="rl_lightning.rewards.functions.final_answer",
            batch_size=32,
            sampling=DATA["sampling"],
            evaluation=DATA["evaluation"],
            seed=seed,
        )
        fit = trainer(place / name, seed, [], max_epochs=4, gradient_clip_val=1.0)
        fit.fit(module, data)
        logged = tested(fit, module, data)
        found[f"margin {name}"] = logged["test/margin"][0]
        found[f"length {name}"] = logged["test/length_mean"][0]
        found[f"pass@1 {name}"] = logged["test/pass@1"][0]
    return found

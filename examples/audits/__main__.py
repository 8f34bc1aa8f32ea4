"""Audit three kinds of rewards, and print what is said of each.

Usage: python -m examples.audits [--only graders] [--policy MODEL] [--directory runs/audits]

- `reward model`: one that is trained as configs/reward_model.yaml trains it, from an eighth of the samples: it learns "short".
- `graders`: of word problems in the shape of GSM8K, two of them buggy, answered by MODEL, a chat model; SmolLM2-135M-Instruct by default.
- `sound`: right answers, the same with one verdict in seven turned round, and right and short ones.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rl_lightning as rl
from rl_lightning.data import FileExamples, PairOptions

_RIGHT = "rl_lightning.rewards.functions.final_answer"
_QUIET: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False}
#: Word problems: text, and the arithmetic of it.
_STORIES = (
    (
        "{name} has {a} apples and buys {b} more. How many apples does {name} have now?",
        "{a} + {b} = <<{a}+{b}={sum}>>{sum}",
        "sum",
    ),
    (
        "{name} had {sum} pens and gave {b} of them away. How many pens are left?",
        "{sum} - {b} = <<{sum}-{b}={a}>>{a}",
        "a",
    ),
    ("A box holds {a} cups. How many cups do {b} boxes hold?", "{a} * {b} = <<{a}*{b}={product}>>{product}", "product"),
)


def word_problems(path: Path, count: int) -> Path:
    """Write problems in the shape of GSM8K: a question, and an answer that ends with `#### 7`."""
    draws, rows = random.Random(0), []
    for number in range(count):
        a, b = draws.randint(2, 9), draws.randint(2, 9)
        values = {"name": draws.choice(["Tom", "Ann", "Lee"]), "a": a, "b": b, "sum": a + b, "product": a * b}
        question, work, asked = _STORIES[number % len(_STORIES)]
        answer = f"{work.format(**values)}\n#### {values[asked]}"
        rows.append({"question": question.format(**values), "answer": answer})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def reward_model(directory: Path, policy: str) -> None:
    """Train a reward model on pairs by a reward for right and short answers, and audit it."""
    place = directory / "reward_model"
    if not (place / "hf").exists():
        data = rl.RewardDataModule(
            sampler="embedded",
            max_prompts=400,
            group_size=8,
            pairs=PairOptions(pairs_per_prompt=4),
            batch_size=64,
            sampling={"max_new_tokens": 40},
            rewards=[
                {"function": _RIGHT},
                {"function": "rl_lightning.rewards.functions.response_length", "weight": -0.05},
            ],
        )
        module = rl.RewardModel(centring=0.01, optimizer={"lr": 3e-4, "warmup_steps": 5, "schedule": "cosine"})
        settings = {"max_epochs": 3, "gradient_clip_val": 1.0, "limit_val_batches": 0}
        rl.Trainer(default_root_dir=place, callbacks=[rl.HFExport()], **settings, **_QUIET).fit(module, data)
    rewards = [
        {"function": _RIGHT, "name": "right", "weight": 0},
        {"model": str(place / "hf"), "name": "reward model"},
    ]
    audit(directory, "embedded", rl.RolloutDataModule(rewards=rewards, sampling={"max_new_tokens": 40}))


def sound(directory: Path, policy: str) -> None:
    """Audit rewards that are sound."""
    weighted = {"flipped": "flipped", "right and short": "right_and_short"}
    rewards: list[dict[str, Any]] = [{"function": _RIGHT, "name": "right", "weight": 0}]
    rewards += [
        {"function": f"examples.overoptimization.gold.{function}", "name": name, "weight": 0.5}
        for name, function in weighted.items()
    ]
    audit(directory, "embedded", rl.RolloutDataModule(rewards=rewards, sampling={"max_new_tokens": 40}))


def graders(directory: Path, policy: str) -> None:
    """Audit graders of word problems."""
    right = {"function": "rl_lightning.rewards.functions.answer_correct", "arguments": {"extract": ["last_number"]}}
    rewards: list[dict[str, Any]] = [{**right, "name": "right", "weight": 0}]
    rewards += [
        {"function": f"examples.audits.graders.{name}", "name": name, "weight": 1 / 3}
        for name in ("anywhere", "first_number", "shown_work")
    ]
    data = rl.RolloutDataModule(
        prompts=FileExamples(str(word_problems(directory / "problems.jsonl", 64)), val=24),
        prompt_options={"system_prompt": "Answer briefly. End with the number."},
        rewards=rewards,
        sampling={"max_new_tokens": 32},
    )
    audit(directory, policy, data, prompts=24, answers=16, best_of=(1, 4, 8))


def audit(directory: Path, policy: str, data: rl.RolloutDataModule, **sizes: Any) -> None:
    """Audit the rewards of some data with a policy, and print the table."""
    rl.Trainer(default_root_dir=directory / "audit", **_QUIET).audit(rl.GRPO(policy=policy), data, "right", **sizes)


AUDITS: dict[str, Callable[[Path, str], None]] = {"reward model": reward_model, "sound": sound, "graders": graders}


def main() -> None:
    """Audit, one after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=AUDITS)
    parser.add_argument("--policy", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--directory", type=Path, default=Path("runs/audits"))
    options = parser.parse_args()
    for name in options.only or AUDITS:
        print(f"\n{name}")
        AUDITS[name](options.directory.resolve(), options.policy)


if __name__ == "__main__":
    main()

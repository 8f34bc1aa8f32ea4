"""Responses of a policy to some problems, and pairs of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from pkgutil import resolve_name

import torch
from torch import Tensor

import rl_lightning as rl
from examples.overoptimization.settings import FUNCTIONS, Sizes
from rl_lightning.data.sources import ChainSum
from rl_lightning.data.sources.base import Example
from rl_lightning.data.sources.handed import ListedExamples
from rl_lightning.types import Rollout

#: Responses that are sampled side by side.
_AT_A_TIME = 4096


@dataclass(frozen=True)
class Answers:
    """The same number of responses to each of some problems.

    Args:
        examples: the problems.
        texts: responses, problem by problem.
        truncated: which of them were cut off.
        gold, right: (problems, responses) float.
    """

    examples: list[Example]
    texts: list[str]
    truncated: list[bool]
    gold: Tensor
    right: Tensor

    @property
    def count(self) -> int:
        """Responses to each problem."""
        return self.gold.shape[1]

    def by(self, name: str) -> Tensor:
        """Return what one of `FUNCTIONS` says of all responses, (problems, responses)."""
        if name in ("gold", "right"):
            return self.gold if name == "gold" else self.right
        reward = resolve_name(FUNCTIONS[name])
        told = [(one.prompt, one.answer, one.metadata) for one in self.examples for _ in range(self.count)]
        said = [reward(text, str(prompt), *rest) for text, (prompt, *rest) in zip(self.texts, told, strict=True)]
        return torch.tensor(said).view(self.gold.shape)

    def rows(self) -> list[tuple[str, str, bool]]:
        """Return prompt, response, and whether it was cut off, of every response."""
        prompts = [str(one.prompt) for one in self.examples for _ in range(self.count)]
        return list(zip(prompts, self.texts, self.truncated, strict=True))


def trainer(place: Path, seed: int, **settings: object) -> rl.Trainer:
    """Return a Trainer that logs nothing and keeps no checkpoint."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    return rl.Trainer(seed=seed, default_root_dir=place, devices=1, **quiet, **settings)


def sample(
    examples: Sequence[Example], count: int, seed: int, sizes: Sizes, place: Path, policy: str = "embedded"
) -> Answers:
    """Sample a policy, and score its responses by gold reward and correctness."""
    data = rl.RolloutDataModule(
        prompts=ListedExamples({"test": list(examples)}),
        rewards=[{"function": FUNCTIONS[name], "name": name} for name in ("gold", "right")],
        sampling={"max_new_tokens": sizes.max_new_tokens},
        evaluation={"samples_per_prompt": count, "prompts_per_batch": max(1, _AT_A_TIME // count)},
        seed=seed,
    )
    parts = trainer(place, seed).predict(rl.GRPO(policy=policy), datamodule=data)
    assert parts is not None
    rollouts: list[Rollout] = [part for part in parts if isinstance(part, Rollout)]
    joined = {name: torch.cat([one.reward_components[name] for one in rollouts]) for name in ("gold", "right")}
    return Answers(
        list(examples),
        [text for one in rollouts for text in one.responses],
        [cut for one in rollouts for cut in one.truncated.tolist()],
        joined["gold"].view(-1, count),
        joined["right"].view(-1, count),
    )


def problems(sizes: Sizes, seed: int) -> dict[str, list[Example]]:
    """Return the problems of a seed: those of the pool, of pairs, and of training runs; the last two have none in common."""
    source = ChainSum(train_size=sizes.pair_prompts + sizes.prompts * sizes.rollouts, seed=seed)
    train = [replace(one, response=None) for one in source.load("train")]
    test = [replace(one, response=None) for one in source.load("test")]
    return {
        "pool": test[: sizes.pool_prompts],
        "pairs": train[: sizes.pair_prompts],
        "runs": train[sizes.pair_prompts :],
    }


def pairs_of(answers: Answers) -> list[Example]:
    """Return the first two responses to each problem as a pair, the one with more gold first; none if they are worth the same.

    A response that was cut off makes no pair, for written text ends; nor does an empty one, which a reward model cannot learn from.
    """
    found = []
    for number, (example, worth) in enumerate(zip(answers.examples, answers.gold.tolist(), strict=True)):
        first = number * answers.count
        both = slice(first, first + 2)
        if worth[0] == worth[1] or any(answers.truncated[both]) or not all(answers.texts[both]):
            continue
        better = int(worth[1] > worth[0])
        texts = answers.texts[first + better], answers.texts[first + 1 - better]
        found.append(replace(example, response=texts[0], rejected=texts[1]))
    return found

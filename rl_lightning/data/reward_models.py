"""Reward models that a YAML lists among the rewards, as rewards of all samples at once."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Sequence

import torch

from rl_lightning.errors import UserError
from rl_lightning.models import ClassifierFiles, Judge, Text
from rl_lightning.rewards import BatchReward, RewardSample, RewardSpec, tally

log = logging.getLogger(__name__)

#: What `RewardSpec.arguments` may hold for a model.
_ARGUMENTS = tuple(name for name in inspect.signature(Judge).parameters if name != "files")


class ModelReward:
    """Scores samples by a sequence classifier; weights are loaded when they are first asked for.

    Args:
        spec: names the model and its arguments.

    Raises:
        UserError: for an argument that a model does not take.
    """

    def __init__(self, spec: RewardSpec) -> None:
        assert spec.model is not None
        unknown = [name for name in spec.arguments if name not in _ARGUMENTS]
        if unknown:
            raise UserError(
                f"reward model {spec.model!r} has no argument {unknown[0]!r}: it takes {', '.join(_ARGUMENTS)}"
            )
        self.spec = spec
        self.device: torch.device | str = "cpu"
        self._judge: Judge | None = None
        self._told = False

    def __call__(self, samples: Sequence[RewardSample]) -> list[float]:
        """Return a score a sample; NaN where the classifier gives none."""
        judge = self._judge or self.prepare(self.device)
        texts = [
            Text(one.prompt, one.response, not one.metadata.get("truncated", False), one.messages) for one in samples
        ]
        scores, cut = judge.score(texts, self.device)
        for _ in range(sum(cut)):
            tally.count("text_cut")
        if any(cut) and not self._told:
            self._told = True
            log.warning(
                "reward model %s: %d of %d texts are longer than its %d tokens; their prompts were cut (further ones are counted "
                "as reward_failures/text_cut), and the %d whose responses alone are longer have no score",
                self.spec.model,
                sum(cut),
                len(cut),
                judge.longest,
                sum(map(math.isnan, scores)),
            )
        return scores

    def prepare(self, device: torch.device | str) -> Judge:
        """Check model and arguments, without loading weights, and say where they will be.

        Raises:
            UserError: if there is no such model or label.
        """
        assert self.spec.model is not None
        self.device = device
        self._judge = Judge(ClassifierFiles(self.spec.model), **self.spec.arguments)
        return self._judge

    def close(self) -> None:
        """Let go of the weights; scoring again loads them anew."""
        self._judge = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_judge": None}


def with_models(specs: Sequence[RewardSpec | BatchReward]) -> tuple[list[RewardSpec | BatchReward], list[ModelReward]]:
    """Return the rewards as a `Rewarder` takes them, in their order, and the models among them."""
    rewards: list[RewardSpec | BatchReward] = []
    models: list[ModelReward] = []
    for spec in specs:
        if isinstance(spec, BatchReward) or spec.model is None:
            rewards.append(spec)
        else:
            models.append(ModelReward(spec))
            rewards.append(BatchReward(spec.name or "reward_model", spec.weight, models[-1], spec.arguments))
    return rewards, models

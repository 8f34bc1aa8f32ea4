"""Which responses are accepted, for rejection-sampling fine-tuning."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from rl_lightning.errors import UserError
from rl_lightning.hooks import RolloutCallback
from rl_lightning.rewards.resolve import resolve
from rl_lightning.strategies import from_every_rank
from rl_lightning.types import Rollout

#: Pass rates below which prompts are hard, and medium.
_HARD, _MEDIUM = 0.25, 0.75


def exact_text(text: str) -> str:
    """Return a key that only equal texts share."""
    return text


def ignoring_whitespace(text: str) -> str:
    """Return a key that texts share that differ in the amount of white space only.

    Example:
        >>> ignoring_whitespace(" 3 + 4\\n= 7") == ignoring_whitespace("3 + 4 = 7 ")
        True
    """
    return " ".join(text.split())


def _key_function(path: str) -> Callable[[str], object]:
    try:
        return resolve(path)
    except UserError as error:
        raise UserError(f"RejectionSampling.deduplicate: {str(error).removeprefix('Reward function ')}") from error


class RejectionSampling(RolloutCallback):
    """Give accepted responses the advantage 1 and all others 0: the indicator 𝕀(x, y) of RFT.

    A response passes if its reward reaches the threshold, and is accepted if it is the first of its prompt with its key,
    and one of the first `max_per_prompt` of those. The order is that of sampling, so which are accepted follows from
    the samples, and those accepted are as random as the samples are.

    Logs `rollout/accepted_fraction`; `rollout/distinct_per_prompt`, the mean number of passing responses with different
    keys; and which share of the accepted ones comes from prompts that pass in less than a quarter of their samples
    (`rollout/yield_hard`), less than three quarters (`_medium`) and more (`_easy`).

    Args:
        threshold: smallest reward that passes.
        normalize_by: the mean of the objective is over `all` responses (the notebook's), or over the `accepted`
            ones: the others are then left out of numerator and denominator. A duplicate counts as rejected.
        deduplicate: dotted path of a function text → key; responses to one prompt with equal keys are accepted once.
            `rl_lightning.callbacks.rejection_sampling.exact_text` and `.ignoring_whitespace` are there; all are kept if
            null. Yuan et al. (arXiv 2308.01825) keep one for each list of equations.
        max_per_prompt: accept at most so many responses to a prompt, lest easy prompts dominate; all if null.
    """

    supplies = ("advantages",)

    def __init__(
        self,
        threshold: float = 0.5,
        normalize_by: Literal["all", "accepted"] = "all",
        deduplicate: str | None = None,
        max_per_prompt: int | None = None,
    ) -> None:
        if normalize_by not in ("all", "accepted"):
            raise UserError(f"RejectionSampling: normalize_by is 'all' or 'accepted', not {normalize_by!r}")
        if max_per_prompt is not None and max_per_prompt < 1:
            raise UserError(f"RejectionSampling: max_per_prompt must be at least 1, not {max_per_prompt}")
        self.threshold = threshold
        self.normalize_by = normalize_by
        self.key = _key_function(deduplicate) if deduplicate else None
        self.max_per_prompt = max_per_prompt

    def on_rollout_advantages(self, trainer: Trainer, module: LightningModule, rollout: Rollout) -> None:
        """Fill in `rollout.advantages`."""
        counted = rollout.response_mask.any(1)
        passed = counted & (rollout.rewards >= self.threshold)
        accepted = self._accepted(passed, rollout)
        rollout.metrics.update(self._metrics(passed, accepted, counted, rollout))
        if self.normalize_by == "accepted":
            rollout.response_mask = rollout.response_mask & accepted.unsqueeze(1)
        rollout.advantages = (rollout.response_mask & accepted.unsqueeze(1)).to(rollout.rewards)

    def _accepted(self, passed: Tensor, rollout: Rollout) -> Tensor:
        """Return which of the passing responses remain, (B,) bool: the first of each key, then the first few."""
        if self.key is None and self.max_per_prompt is None:
            return passed
        accepted = torch.zeros_like(passed)
        seen: set[tuple[int, object]] = set()
        taken: Counter[int] = Counter()
        groups = rollout.group_ids.tolist()
        for row in passed.nonzero()[:, 0].tolist():
            key = (groups[row], self.key(rollout.responses[row]) if self.key else row)
            full = self.max_per_prompt is not None and taken[groups[row]] >= self.max_per_prompt
            if key not in seen and not full:
                accepted[row] = True
                seen.add(key)
                taken[groups[row]] += 1
        return accepted

    def _metrics(self, passed: Tensor, accepted: Tensor, counted: Tensor, rollout: Rollout) -> dict[str, float]:
        """Return what the loggers see, over all ranks."""
        ids, member = rollout.group_ids.unique(return_inverse=True)
        none = torch.zeros(len(ids), dtype=torch.float64, device=member.device)
        rate = none.index_add(0, member, passed.double()) / none.index_add(0, member, counted.double())
        rates = rate[member][accepted]
        key = self.key or exact_text
        texts = {(int(member[row]), key(rollout.responses[row])) for row in passed.nonzero()[:, 0].tolist()}
        hard, medium = int((rates < _HARD).sum()), int((rates < _MEDIUM).sum())
        own = [len(rates), hard, medium - hard, len(rates) - medium, int(counted.sum()), len(texts), len(ids)]
        total, *yields, rows, distinct, prompts = (sum(column) for column in zip(*from_every_rank(own), strict=True))
        metrics = {"rollout/accepted_fraction": total / max(1, rows), "rollout/distinct_per_prompt": distinct / prompts}
        if total:
            metrics |= {
                f"rollout/yield_{name}": count / total
                for name, count in zip(("hard", "medium", "easy"), yields, strict=True)
            }
        return metrics

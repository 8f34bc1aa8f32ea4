"""Acceptance of responses, for rejection-sampling fine-tuning (RFT)."""

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

#: Prompts with a pass rate below the first are hard, below the second medium, above easy.
_HARD, _MEDIUM = 0.25, 0.75


def exact_text(text: str) -> str:
    """Return the text itself as the key: only equal texts are duplicates."""
    return text


def ignoring_whitespace(text: str) -> str:
    """Return a text with every run of white space as one space: texts that differ in that alone are duplicates.

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

    A response passes if its reward reaches the threshold. It is accepted if it passes, is the first of its prompt with its key,
    and fewer than `max_per_prompt` were accepted before it. Responses are taken in the order in which they were sampled, or from the
    one with the highest reward on: with `order: best`, `max_per_prompt: 1` and a threshold of minus infinity (`-.inf`), RFT imitates the best of
    n by the reward.

    Logs `rollout/accepted_fraction`; `rollout/distinct_per_prompt`, the mean number of different keys among a prompt's passing
    responses; and the shares of accepted responses that come from prompts with a pass rate below 1/4 (`rollout/yield_hard`),
    below 3/4 (`rollout/yield_medium`) and above (`rollout/yield_easy`).

    Args:
        threshold: smallest reward that passes.
        normalize_by: the objective is a mean over `all` responses (the notebook's), or over the `accepted` ones: then all others
            are left out of numerator and denominator. A duplicate counts as not accepted.
        deduplicate: dotted path of a function text → key; of the responses to one prompt with equal keys, one is accepted. Use
            `rl_lightning.callbacks.rejection_sampling.exact_text` or `.ignoring_whitespace`, or a function of your own; no
            deduplication if null. Yuan et al. (arXiv 2308.01825) keep one response per list of equations.
        max_per_prompt: accept at most this many responses to a prompt, so that easy prompts do not dominate; no limit if null.
        order: in which the responses to a prompt are taken: as they were `sampled`, or the `best` first, by the reward as callbacks
            have shaped it; equal ones as they were sampled.

    Raises:
        UserError: for an unknown `normalize_by`, a `max_per_prompt` below 1, an order where all that pass are taken, or a function that
            cannot be imported.
    """

    supplies = ("advantages",)

    def __init__(
        self,
        threshold: float = 0.5,
        normalize_by: Literal["all", "accepted"] = "all",
        deduplicate: str | None = None,
        max_per_prompt: int | None = None,
        order: Literal["sampled", "best"] = "sampled",
    ) -> None:
        if normalize_by not in ("all", "accepted"):
            raise UserError(f"RejectionSampling: normalize_by is 'all' or 'accepted', not {normalize_by!r}")
        if max_per_prompt is not None and max_per_prompt < 1:
            raise UserError(f"RejectionSampling: max_per_prompt must be at least 1, not {max_per_prompt}")
        if order == "best" and max_per_prompt is None and not deduplicate:
            raise UserError(
                "RejectionSampling: order: best changes nothing where all that pass are taken: set max_per_prompt"
            )
        self.threshold = threshold
        self.order = order
        self.normalize_by = normalize_by
        self.key = _key_function(deduplicate) if deduplicate else None
        self.max_per_prompt = max_per_prompt

    def on_rollout_advantages(self, trainer: Trainer, module: LightningModule, rollout: Rollout) -> None:
        """Set `rollout.advantages`, (B, R), to 1 on the tokens of accepted responses and 0 elsewhere."""
        counted = rollout.response_mask.any(1)
        passed = counted & (rollout.rewards >= self.threshold)
        accepted = self._accepted(passed, rollout)
        rollout.metrics.update(self._metrics(passed, accepted, counted, rollout))
        if self.normalize_by == "accepted":
            rollout.response_mask = rollout.response_mask & accepted.unsqueeze(1)
        rollout.advantages = (rollout.response_mask & accepted.unsqueeze(1)).to(rollout.rewards)

    def _accepted(self, passed: Tensor, rollout: Rollout) -> Tensor:
        """Return the accepted responses among those that passed, (B,) bool: without duplicates, and at most `max_per_prompt`."""
        if self.key is None and self.max_per_prompt is None:
            return passed
        accepted = torch.zeros_like(passed)
        seen: set[tuple[int, object]] = set()
        taken: Counter[int] = Counter()
        groups = rollout.group_ids.tolist()
        rows = passed.nonzero()[:, 0]
        if self.order == "best":
            rows = rows[rollout.rewards[rows].argsort(descending=True, stable=True)]
        for row in rows.tolist():
            key = (groups[row], self.key(rollout.text(row)) if self.key else row)
            full = self.max_per_prompt is not None and taken[groups[row]] >= self.max_per_prompt
            if key not in seen and not full:
                accepted[row] = True
                seen.add(key)
                taken[groups[row]] += 1
        return accepted

    def _metrics(self, passed: Tensor, accepted: Tensor, counted: Tensor, rollout: Rollout) -> dict[str, float]:
        """Return the logged metrics over all ranks, from (B,) bool each: passed, accepted, and with a reward."""
        ids, member = rollout.group_ids.unique(return_inverse=True)
        none = torch.zeros(len(ids), dtype=torch.float64, device=member.device)
        rate = none.index_add(0, member, passed.double()) / none.index_add(0, member, counted.double())
        rates = rate[member][accepted]
        key = self.key or exact_text
        texts = {(int(member[row]), key(rollout.text(row))) for row in passed.nonzero()[:, 0].tolist()}
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

"""A warning of responses that are cut off."""

from __future__ import annotations

import logging

from lightning.pytorch import LightningModule, Trainer

from rl_lightning.generation import Sampling
from rl_lightning.hooks import RolloutCallback
from rl_lightning.strategies import from_every_rank
from rl_lightning.types import Rollout

log = logging.getLogger(__name__)


class RoomWarning(RolloutCallback):
    """Warn once if more than half of a rollout's responses are cut off, and say which cap does it."""

    only_looks = True

    def __init__(self) -> None:
        self._warned = False

    def state_dict(self) -> dict[str, bool]:
        """Return whether the warning has been logged."""
        return {"warned": self._warned}

    def load_state_dict(self, state_dict: dict[str, bool]) -> None:
        """Do not say again what was said before the checkpoint."""
        self._warned = state_dict["warned"]

    def on_rollout_end(self, trainer: Trainer, module: LightningModule, rollout: Rollout) -> None:
        """Look at the share of responses that a cap has ended."""
        share = rollout.metrics.get("rollout/truncated_fraction", 0.0)
        if self._warned or share <= 0.5 or module.learns_from != "rollouts":
            return
        self._warned = True
        sampling: Sampling = trainer.datamodule.sampling  # type: ignore[attr-defined]
        turns = rollout.turns
        ended = rollout.truncated if turns is None else rollout.truncated & (turns.amax(1) == sampling.max_turns)
        counts = from_every_rank((int(rollout.truncated.sum()), int(ended.sum())))
        cut, out_of_turns = (sum(column) for column in zip(*counts, strict=True))
        if trainer.is_global_zero:
            log.warning(
                "%.0f %% of the responses are cut off (rollout %d; said once): %s",
                100 * share,
                trainer.current_epoch + 1,
                what_acts(sampling, turns is not None, cut, out_of_turns),
            )


def what_acts(sampling: Sampling, plays: bool, cut: int, out_of_turns: int) -> str:
    """Return which cap ends responses, and what to do.

    Args:
        sampling: its caps.
        plays: responses are episodes in an environment.
        cut: responses that were cut off, on all ranks.
        out_of_turns: those of them that had had `max_turns` turns.
    """
    room = f"sampling.max_new_tokens ({sampling.max_new_tokens}"
    if not plays:
        return f"raise {room}), or let OverlongShaping reward shorter ones"
    said = [f"{cut - out_of_turns} had no room left under {room} tokens, replies included)"] * (cut > out_of_turns)
    said += [f"{out_of_turns} had had sampling.max_turns ({sampling.max_turns})"] * (out_of_turns > 0)
    which = " and ".join(said) or "by sampling.max_new_tokens or sampling.max_turns"  # whose groups were dropped
    return f"{which}: raise it, or set environment.unfinished if running out pays"

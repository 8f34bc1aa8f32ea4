"""A watch over runs whose reward rises while what it stands for falls."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn

from rl_lightning.callbacks.held_out_divergence import HeldOutDivergence
from rl_lightning.callbacks.verifier import find_verifier
from rl_lightning.errors import UserError
from rl_lightning.strategies import checkpoint_steps
from rl_lightning.typed import Typed

log = logging.getLogger(__name__)

#: Looks that say where a run began; nothing is complained of before they are over.
FIRST = 3
#: Rise of "passes the format" less "is right" that is complained of.
GAP = 0.1


@dataclass
class Smoothed:
    """A number that is looked at again and again, as an exponential moving average.

    Args:
        smoothing: weight of the newest look, in (0, 1].

    Attributes:
        level: the average now.
        best: the highest average so far, and `best_step` the optimizer step of that look.
        began: the mean of the first three looks.
    """

    smoothing: float
    level: float = 0.0
    best: float = 0.0
    best_step: int = 0
    began: float = 0.0
    looks: int = 0

    def look(self, value: float, step: int) -> None:
        """Take in the value at an optimizer step."""
        self.level = value if self.looks == 0 else self.smoothing * value + (1 - self.smoothing) * self.level
        if self.looks < FIRST:
            self.began += (value - self.began) / (self.looks + 1)
        if self.looks == 0 or self.level > self.best:
            self.best, self.best_step = self.level, step
        self.looks += 1


@dataclass
class _State:
    """What a checkpoint keeps: the averages, for how many looks in a row each complaint has held, those that were made."""

    levels: dict[str, Smoothed] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)


class RewardWatch(Callback, metaclass=Typed):
    """Warn, or stop, when the trained reward rises while a verifier that training does not use falls.

    It looks at every validation, whose prompts are the same each time, and complains, once each, of

    - the **verifier**: `val/reward/<verifier>` has fallen from its best by more than `drop` while the reward is above its start;
    - the **format**: the share of responses that pass it, less the verifier, has risen by 0.1 since the start;
    - the **divergence**: `val/kl` is above `kl_budget`. This is a budget of yours, and no sign by itself that something is wrong.

    All three are averages over the looks, and must hold for `patience` looks in a row after the first three. The complaint names the
    checkpoint nearest to the verifier's best. Of 2,000 simulated runs of 100 looks in which nothing changes, and a verifier that half of
    the responses pass, these shares were complained of (`python -m examples.overoptimization.null_runs`):

    =====================================  =========  =========  =========
    prompts × responses of a validation    drop 0.10  drop 0.15  drop 0.20
    =====================================  =========  =========  =========
    32 × 8                                 0.9 %      0          0
    16 × 8                                 10.7 %     0.4 %      0
    16 × 1                                 100 %      97.3 %     63.4 %
    =====================================  =========  =========  =========

    The format was complained of in none of them at 32 × 8, in 0.7 % at 16 × 8 and in 45 % at 16 × 1.

    Logs `val/watch_drop`, how far the verifier is below its best.

    Args:
        verifier: name of a reward at weight 0 that knows the truth; the only one at weight 0 if null.
        drop: fall that is complained of, in units of the verifier. The default was calibrated for a rate between 0 and 1.
        patience: looks in a row. Complaints by chance at 32 × 8 and a drop of 0.1: 1.6 % with 1, 0.9 % with 2, 0.6 % with 3.
        smoothing: weight of the newest look in the averages, in (0, 1]; 0.2 % with 0.1, 0.9 % with 0.3, 84 % with 1.
        kl_budget: nats per response; needs the callback `HeldOutDivergence`. None for no budget.
        format: name of a reward at weight 0 that is 1 for responses that can be read, whether right or wrong. None for none.
        action: `warn`, or `stop` the run at the end of the validation, in good order.

    Raises:
        UserError: for a value out of range, for a verifier that does not exist or is what is trained on, for a budget without
            `HeldOutDivergence`, and for data without validation.
    """

    def __init__(
        self,
        verifier: str | None = None,
        drop: float = 0.1,
        patience: int = 2,
        smoothing: float = 0.3,
        kl_budget: float | None = None,
        format: str | None = None,
        action: Literal["warn", "stop"] = "warn",
    ) -> None:
        if not drop > 0 or patience < 1 or not 0 < smoothing <= 1 or not (kl_budget is None or kl_budget > 0):
            raise UserError(
                "RewardWatch needs drop above 0, patience of at least 1, smoothing in (0, 1] and kl_budget above 0, not "
                f"{drop}, {patience}, {smoothing} and {kl_budget}"
            )
        self.verifier = verifier
        self.drop = drop
        self.patience = patience
        self.smoothing = smoothing
        self.kl_budget = kl_budget
        self.format = format
        self.action = action
        self._state = _State()

    def state_dict(self) -> dict[str, object]:
        """Return the averages, and what has been complained of."""
        return asdict(self._state)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the averages of a checkpoint."""
        levels = {name: Smoothed(**level) for name, level in state_dict["levels"].items()}
        self._state = _State(levels, state_dict["held"], state_dict["said"])

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a watch that could not see anything."""
        if stage != "fit":
            return
        weights = _weights(trainer)
        if sum(isinstance(one, RewardWatch) for one in _callbacks(trainer)) > 1:
            raise UserError("RewardWatch stands there twice, and both would log val/watch_drop: keep one of them")
        if not trainer.limit_val_batches:
            raise UserError("RewardWatch looks at validations, and this run has none: set trainer.limit_val_batches")
        source = getattr(trainer.datamodule, "source", None)  # type: ignore[attr-defined]
        if source is not None and not source.has("val"):
            raise UserError("RewardWatch looks at validations, and the data have none: `val: 0.02` holds a share out")
        self.verifier = find_verifier("RewardWatch", self.verifier, weights, _callbacks(trainer))
        if self.format is not None:
            find_verifier("RewardWatch", self.format, weights, _callbacks(trainer))
            if self.format == self.verifier:
                raise UserError(
                    f"RewardWatch: format and verifier are the same reward, {self.format!r}, and never part"
                )
        if self.kl_budget is not None and not any(isinstance(one, HeldOutDivergence) for one in _callbacks(trainer)):
            raise UserError(
                "RewardWatch: kl_budget needs val/kl: add the callback rl_lightning.callbacks.HeldOutDivergence"
            )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the numbers of a validation."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        seen = {name: float(value) for name, value in trainer.callback_metrics.items()}
        # Lightning keeps a number that this validation did not log, as of a reward that failed on all responses: that is no look.
        logged = getattr(pl_module, "evaluated", seen)
        names = {"verifier": f"val/reward/{self.verifier}", "reward": "val/reward_mean"}
        names |= {"format": f"val/reward/{self.format}"} if self.format else {}
        names = {what: name for what, name in names.items() if name in logged} | {"kl": "val/kl"}
        values = {what: seen[name] for what, name in names.items() if name in seen}
        if "verifier" not in values:
            log.warning(
                "RewardWatch: this validation is no look: %s, the verifier, failed on every response, or is the only reward",
                self.verifier,
            )
            return
        if "format" in values:
            values["gap"] = values.pop("format") - values["verifier"]
        for what, value in values.items():
            self._state.levels.setdefault(what, Smoothed(self.smoothing)).look(value, trainer.global_step)
        level = self._state.levels["verifier"]
        for logger in trainer.loggers:
            logger.log_metrics({"val/watch_drop": level.best - level.level}, step=trainer.global_step)
        for what, complaint in self._complaints(self._state.levels).items():
            self._hold(trainer, what, complaint)

    def _complaints(self, levels: Mapping[str, Smoothed]) -> dict[str, str | None]:
        """Return for each thing that is watched what is to be complained of, or None."""
        verifier, reward = levels["verifier"], levels.get("reward")
        found: dict[str, str | None] = dict.fromkeys(levels)
        if verifier.best - verifier.level > self.drop and reward is not None and reward.level > reward.began:
            found["verifier"] = (
                f"the verifier {self.verifier} has fallen from {verifier.best:.3g} at step {verifier.best_step} to "
                f"{verifier.level:.3g}, while the reward that is trained on rose from {reward.began:.3g} to {reward.level:.3g}"
            )
        if "gap" in levels and levels["gap"].level - levels["gap"].began > GAP:
            found["gap"] = (
                f"responses that pass {self.format} but not {self.verifier} have become more: {levels['gap'].began:.3g} of all "
                f"at the start, {levels['gap'].level:.3g} now"
            )
        if self.kl_budget is not None and "kl" in levels and levels["kl"].level > self.kl_budget:
            found["kl"] = (
                f"the divergence is {levels['kl'].level:.3g} nats a response, above the budget of {self.kl_budget:g}"
            )
        return found

    def _hold(self, trainer: Trainer, what: str, complaint: str | None) -> None:
        """Count for how many looks in a row a complaint holds, and make it once it has held long enough."""
        state = self._state
        holds = complaint is not None and state.levels[what].looks > FIRST
        state.held[what] = state.held.get(what, 0) + 1 if holds else 0
        if state.held[what] < self.patience or what in state.said:
            return
        state.said.append(what)
        if trainer.is_global_zero:
            best = _nearest_checkpoint(trainer, state.levels["verifier"].best_step)
            log.warning("RewardWatch: %s (said once). %s", complaint, best)
        if self.action == "stop":
            trainer.should_stop = True


def _callbacks(trainer: Trainer) -> list[Callback]:
    every: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return every


def _weights(trainer: Trainer) -> dict[str, float]:
    """Return the rewards of a run: name → weight."""
    rewarder = getattr(trainer.datamodule, "rewarder", None)  # type: ignore[attr-defined]
    return {reward.name: reward.weight for reward in rewarder.rewards} if rewarder is not None else {}


def _nearest_checkpoint(trainer: Trainer, step: int) -> str:
    """Return a sentence that names the checkpoint nearest to an optimizer step."""
    savers = [one for one in trainer.checkpoint_callbacks if isinstance(one, ModelCheckpoint)]
    # The newest one is written over by the next.
    found = checkpoint_steps({str(one.dirpath) for one in savers if one.dirpath})
    found = {
        path: at for path, at in found.items() if not Path(path).name.startswith(ModelCheckpoint.CHECKPOINT_NAME_LAST)
    }
    if not found:
        return f"The verifier was best at step {step}; no checkpoint is there to go back to."
    path, nearest = min(found.items(), key=lambda item: (abs(item[1] - step), item[1]))
    kept = "" if nearest == step else "; save_top_k of ModelCheckpoint says how many are kept"
    return f"The verifier was best at step {step}; the nearest checkpoint is {path} of step {nearest}{kept}."

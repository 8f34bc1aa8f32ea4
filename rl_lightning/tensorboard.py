"""The logger for TensorBoard, written so that TensorBoard opens on the curves that matter."""

from __future__ import annotations

import os
from collections.abc import Mapping

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

#: Curves of the first group, which TensorBoard opens.
FIRST = (
    "rollout/reward_mean",
    "val/pass@1",
    "val/reward_mean",
    "val/loss",
    "val/accuracy",
    "val/token_accuracy",
    "train/loss",
)
#: TensorBoard sorts groups by the codes of their characters: capitals come before all others.
GROUP = "Overview"
#: Lightning adds `epoch` to every point: a counter, and the first group that TensorBoard would open.
_LAST = {"epoch": "work/epoch"}


class TensorBoard(TensorBoardLogger):
    """Lightning's logger for TensorBoard, which writes the curves that matter into the group that TensorBoard opens first.

    TensorBoard sorts groups of curves by name, and opens the first two. The curves of `FIRST` are written a second time, in the group
    `Overview`, but for the loss of runs that learn from rollouts, which is near 0 by construction. `epoch` is `work/epoch`, in the
    last group. All other names are those that callbacks and checkpoints see.

    Args:
        save_dir: curves go to the folder `name` in it.
        name: of the folder.
        version: of a folder in that one; none if it is empty.
        default_hp_metric: whether to log `hp_metric`, of which nothing is known.
        **settings: of `lightning.pytorch.loggers.TensorBoardLogger`.

    Attributes:
        of_rollouts: whether the run learns from rollouts; `Dashboard` says so in set-up, before anything is logged. What is
            logged does not tell: a run that goes on in its middle would see less of it than the whole one.
    """

    def __init__(
        self,
        save_dir: str | os.PathLike[str],
        name: str = "tensorboard",
        version: int | str | None = "",
        default_hp_metric: bool = False,
        **settings: object,
    ) -> None:
        self.of_rollouts = False
        super().__init__(save_dir, name=name, version=version, default_hp_metric=default_hp_metric, **settings)  # type: ignore[arg-type]

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write numbers at a step."""
        shown = FIRST[:-1] if self.of_rollouts else FIRST
        again = {f"{GROUP}/{name}": metrics[name] for name in shown if name in metrics}
        super().log_metrics({**again, **{_LAST.get(name, name): value for name, value in metrics.items()}}, step)

"""Run by test_strategies.py on two gloo processes: a signal to one of them, at some moment, and the run that goes on."""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import lightning.pytorch as pl
import torch

from rl_lightning.callbacks import GracefulStop
from rl_lightning.callbacks.graceful_stop import STOPPED_EARLY
from tests.invariants.spread import STRATEGIES, fit, result

#: Algorithm, moment, rank.
CASES = [("grpo", "sampling", 1), ("sft", "validation", 0), ("dapo", "backward", 0), ("ppo", "backward", 1)]


class Tell(pl.Callback):
    """Sends SIGTERM to one rank, once, in the second rollout."""

    def __init__(self, moment, rank):
        self.moment, self.rank = moment, rank

    def _at(self, trainer, moment):
        if (moment, trainer.global_rank) == (self.moment, self.rank) and trainer.current_epoch == 1:
            self.moment = None
            os.kill(os.getpid(), signal.SIGTERM)

    def on_train_start(self, trainer, pl_module):
        trainer.datamodule.watch.on_progress = lambda done, total: self._at(
            trainer, "validation" if trainer.validating else "sampling"
        )

    def on_after_backward(self, trainer, pl_module):
        self._at(trainer, "backward")


def main(strategy: str, policy: str, directory: str) -> None:
    torch.set_num_threads(1)
    for name, moment, rank in CASES:

        def run(place, *callbacks, **settings):
            callbacks = [*callbacks, GracefulStop()]
            return fit(
                name, policy, place, callbacks=callbacks, devices=2, strategy=STRATEGIES[strategy](),  # noqa: B023
                enable_checkpointing=True, **settings,
            )  # fmt: skip

        place = Path(directory) / name
        whole = run(place / "whole")
        expected = result(*whole)
        status = 0
        try:
            run(place / "stopped", Tell(moment, rank))
        except SystemExit as stopped:
            status = stopped.code
        assert status == STOPPED_EARLY, status
        (last,) = (place / "stopped").rglob("last.ckpt")
        resumed = run(place / "stopped", ckpt_path=last)
        actual = result(*resumed)
        assert 0 < len(actual["steps"]) < len(expected["steps"])
        if whole[0].is_global_zero:
            torch.save({"whole": expected, "resumed": actual}, Path(directory) / f"{name}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])

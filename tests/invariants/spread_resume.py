"""Run by test_strategies.py on two gloo processes: a run stopped in the middle of a rollout and at its end, and gone on with."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from rl_lightning.callbacks import HFExport
from rl_lightning.strategies import AtomicCheckpointIO
from tests.invariants.spread import STRATEGIES, fit, result

#: Name of the run → optimizer steps after which it is stopped: within an epoch, between epochs over one rollout, at an end.
STOPS = {"ppo": (3, 6), "dapo": (4,), "dpo": (1,)}


def main(strategy: str, policy: str, directory: str) -> None:
    torch.set_num_threads(1)
    for name, stops in STOPS.items():
        place = Path(directory) / name

        def run(callbacks=(), **settings):
            return fit(
                name, policy, place, devices=2, strategy=STRATEGIES[strategy](), callbacks=callbacks,  # noqa: B023
                enable_checkpointing=True, plugins=[AtomicCheckpointIO()], **settings,
            )  # fmt: skip

        keep = ModelCheckpoint(place / "kept", save_top_k=-1, filename="{step}", every_n_train_steps=1)
        ends = ModelCheckpoint(
            place / "kept", save_top_k=-1, filename="{epoch}", every_n_epochs=1, save_on_train_epoch_end=True
        )
        whole = run([keep, ends, HFExport(str(place / "hf"))])
        expected = result(*whole)
        if whole[0].is_global_zero:
            torch.save(expected, place / "whole.pt")
        for stop in stops:
            # The checkpoint callback is another one, or it would go on deleting what it finds.
            resumed = run([ModelCheckpoint(place / "other")], ckpt_path=place / "kept" / f"step={stop}.ckpt")
            actual = result(*resumed)
            if resumed[0].is_global_zero:
                torch.save(actual, place / f"from-{stop}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])

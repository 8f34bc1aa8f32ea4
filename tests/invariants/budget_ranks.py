"""Run by test_zero_advantages.py: the gradient of two gloo processes, of which one has hardly anything to compute."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from rl_lightning.algorithms import DAPO
from rl_lightning.models import LoadOptions
from tests.support import KeepGradients, StoredRollouts, random_rollout, trainer


class Keep(KeepGradients):
    """Keeps the sizes of microbatches too."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.rows.append(len(batch))


def step_gradient(policy, directory, **options):
    """Return the gradient of a step of eight groups, of whose second half one row teaches, and the sizes of microbatches."""
    rollout = random_rollout(groups=8)
    rollout.old_logprobs = None
    rollout.advantages[17:] = 0.0
    data = StoredRollouts(rollout, group_size=4, max_tokens_per_microbatch=200)
    keep = Keep()
    run = trainer(directory, [keep], **options)
    run.fit(DAPO(policy=policy, load=LoadOptions(dtype="float64"), reduction="token_mean"), datamodule=data)
    return keep.steps[0], keep.rows, run


def main(policy: str, directory: str) -> None:
    torch.set_num_threads(1)
    step, rows, run = step_gradient(policy, directory, devices=2, strategy="ddp")
    torch.save({"step": step, "rows": rows}, Path(directory) / f"rank{run.global_rank}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])

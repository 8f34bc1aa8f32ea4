"""Run by test_splits.py: the gradients of two gloo processes, saved by rank 0."""

import json
import sys
from pathlib import Path
from typing import get_args

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from rl_lightning.algorithms import GRPO
from rl_lightning.functional import Reduction
from rl_lightning.models import LoadOptions
from tests.support import KeepGradients, StoredRollouts, random_rollout, trainer


def main(policy: str, directory: str) -> None:
    torch.set_num_threads(1)
    for dtype in ("float64", "float32"):
        for reduction in get_args(Reduction):
            rollout = random_rollout(dtype=getattr(torch, dtype))
            data = StoredRollouts(rollout, group_size=4, microbatch_size=4)
            module = GRPO(policy=policy, load=LoadOptions(dtype=dtype), reduction=reduction, kl_coef=0.5, clip_low=0.3)
            keep = KeepGradients()
            run = trainer(directory, [keep], devices=2, strategy="ddp")
            run.fit(module, datamodule=data)
            if run.is_global_zero:
                torch.save(keep.steps[0], Path(directory) / f"{reduction}-{dtype}.pt")
                Path(directory, "logged.json").write_text(json.dumps({"ranks": run.world_size}))


if __name__ == "__main__":
    main(*sys.argv[1:])

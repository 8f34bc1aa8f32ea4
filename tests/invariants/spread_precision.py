"""Run by test_strategies.py on two gloo processes: sharded runs of GRPO in other precisions, and with recomputed activations."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import lightning.pytorch as pl
import torch

from rl_lightning.strategies import FSDP2Strategy
from tests.invariants.spread import fit, result

#: Name → strategy, and settings of `fit`.
VARIANTS = {
    "float32": ({}, {}),
    "bf16-mixed": ({}, {"precision": "bf16-mixed"}),
    "bf16-true": ({}, {"precision": "bf16-true"}),
    "gathered in bfloat16": ({"gather_dtype": "bfloat16"}, {}),
    "recomputed": ({}, {"options": {"gradient_checkpointing": True}}),
}


class Ratios(pl.Callback):
    """Keeps the ratios of every microbatch, and the dtype of the weights."""

    def __init__(self):
        self.seen, self.dtype = [], None

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append(pl_module.observations.latest["policy/ratio_mean"].clone())
        self.dtype = str(next(pl_module.policy.parameters()).dtype)


def main(policy: str, directory: str) -> None:
    torch.set_num_threads(1)
    for name, (sharding, settings) in VARIANTS.items():
        ratios = Ratios()
        seen = fit(
            "grpo", policy, Path(directory) / name, "float32", [ratios], devices=2, max_epochs=2,
            strategy=FSDP2Strategy(**sharding), **settings,
        )  # fmt: skip
        saved = result(*seen) | {"ratios": ratios.seen, "dtype": ratios.dtype}
        if seen[0].is_global_zero:
            torch.save(saved, Path(directory) / f"{name}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])

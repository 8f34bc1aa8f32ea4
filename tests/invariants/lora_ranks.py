"""The runs of `spread`, with an adapter; run as a script, on two gloo processes, saved by rank 0."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from rl_lightning.callbacks import HFExport
from tests.invariants import spread

RUNS = list(spread.ADAPTED)


def fit(name: str, policy: str, directory: Path, **settings: Any) -> dict[str, Any]:
    """Train, export both ways, and return what two runs must agree on."""
    exports = [HFExport(str(directory / kind), merge=kind == "merged") for kind in ("merged", "alone")]
    return spread.result(*spread.fit(name, policy, directory, callbacks=exports, **settings))


def main(strategy: str, policy: str, directory: str) -> None:
    torch.set_num_threads(1)
    for name in RUNS:
        saved = fit(name, policy, Path(directory) / name, devices=2, strategy=spread.STRATEGIES[strategy]())
        if int(os.environ.get("LOCAL_RANK", 0)) == 0:
            torch.save(saved, Path(directory) / f"{name}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Run by test_dynamic_sampling.py: what two gloo processes trained on, saved by each of them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from tests.invariants.dynamic import SCENARIOS, run


def main(policy: str, directory: str) -> None:
    torch.set_num_threads(1)
    for name, scenario in SCENARIOS.items():
        watch = run(policy, directory, dtype="float64", devices=2, strategy="ddp", **scenario())
        rank = torch.distributed.get_rank()
        seen = {
            "prompts": [rollout.prompt_index.tolist() for rollout in watch.rollouts],
            "counted": [rollout.response_mask.any(1).tolist() for rollout in watch.rollouts],
            "metrics": [rollout.metrics for rollout in watch.rollouts],
            "batches": len(watch.batches),
            "weights": watch.after[-1],
        }
        torch.save(seen, Path(directory) / f"{name}-{rank}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])

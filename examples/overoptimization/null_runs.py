"""How often `RewardWatch` would complain of runs in which nothing changes: `python -m examples.overoptimization.null_runs`.

Each run has 100 looks at a verifier that every response passes with probability 1/2, the noisiest case; a policy that is sure of
some prompts is complained of less. The reward is taken to rise all the time.
"""

from __future__ import annotations

import torch

from rl_lightning.callbacks import RewardWatch
from rl_lightning.callbacks.reward_watch import FIRST

RUNS, LOOKS = 2000, 100
DROPS = (0.1, 0.15, 0.2)
#: Prompts, responses to each.
VALIDATIONS = ((32, 8), (16, 8), (16, 1))


def largest_fall(prompts: int, responses: int, seed: int = 0) -> torch.Tensor:
    """Return for each run the largest fall below the best that held for two looks in a row, (RUNS,)."""
    draws = torch.Generator().manual_seed(seed)
    answers = prompts * responses
    looks = torch.binomial(torch.full((RUNS, LOOKS), float(answers)), torch.full((RUNS, LOOKS), 0.5), draws) / answers
    smoothing = RewardWatch("any").smoothing
    levels = [looks[:, 0]]
    for number in range(1, LOOKS):
        levels.append(smoothing * looks[:, number] + (1 - smoothing) * levels[-1])
    level = torch.stack(levels, 1)
    fall = level.cummax(1).values - level
    return torch.minimum(fall[:, FIRST + 1 :], fall[:, FIRST:-1]).amax(1)


def main() -> None:
    """Print a table."""
    print("prompts × responses  " + "  ".join(f"drop {drop:.2f}" for drop in DROPS))
    for prompts, responses in VALIDATIONS:
        falls = largest_fall(prompts, responses)
        shares = "  ".join(f"{float((falls > drop).float().mean()):9.1%}" for drop in DROPS)
        print(f"{prompts:7} × {responses:<11}{shares}")


if __name__ == "__main__":
    main()

"""How often `RewardWatch` would complain of runs in which nothing changes: `python -m examples.overoptimization.null_runs`.

Each run has 100 looks at a verifier that every response passes with probability 1/2, the noisiest case; a policy that is sure of
some prompts is complained of less. The reward is taken to rise all the time. Of the responses that do not pass, four in five pass the
format.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rl_lightning.callbacks import RewardWatch
from rl_lightning.callbacks.reward_watch import FIRST, GAP

RUNS, LOOKS = 2000, 100
DROPS = (0.1, 0.15, 0.2)
#: Prompts, responses to each.
VALIDATIONS = ((32, 8), (16, 8), (16, 1))
_DEFAULT = RewardWatch("any")
_RIGHT, _FORMED_AND_WRONG = 0.5, 0.4


def looks(prompts: int, responses: int, rate: float, seed: int = 0) -> Tensor:
    """Return what each look of each run sees of something that a response passes with this probability, (RUNS, LOOKS)."""
    draws, answers = torch.Generator().manual_seed(seed), prompts * responses
    return torch.binomial(torch.full((RUNS, LOOKS), float(answers)), torch.full((RUNS, LOOKS), rate), draws) / answers


def smoothed(seen: Tensor, smoothing: float) -> Tensor:
    """Return the moving averages of the looks."""
    levels = [seen[:, 0]]
    for number in range(1, LOOKS):
        levels.append(smoothing * seen[:, number] + (1 - smoothing) * levels[-1])
    return torch.stack(levels, 1)


def held(levels: Tensor, patience: int) -> Tensor:
    """Return for each run the highest level that holds for so many looks in a row, after the first three, (RUNS,)."""
    return levels[:, FIRST:].unfold(1, patience, 1).amin(2).amax(1)


def largest_fall(
    prompts: int, responses: int, patience: int = _DEFAULT.patience, smoothing: float = _DEFAULT.smoothing
) -> Tensor:
    """Return for each run the largest fall of the verifier below its best that is held, (RUNS,)."""
    level = smoothed(looks(prompts, responses, _RIGHT), smoothing)
    return held(level.cummax(1).values - level, patience)


def largest_gap(prompts: int, responses: int) -> Tensor:
    """Return for each run the largest rise of "passes the format and is wrong" above its start that is held, (RUNS,)."""
    seen = looks(prompts, responses, _FORMED_AND_WRONG)
    rise = smoothed(seen, _DEFAULT.smoothing) - seen[:, :FIRST].mean(1, keepdim=True)
    return held(rise, _DEFAULT.patience)


def main() -> None:
    """Print a table: validations by drops, and the other options at the first of them."""
    print("prompts × responses  " + "  ".join(f"drop {drop:.2f}" for drop in DROPS) + "     format")
    for prompts, responses in VALIDATIONS:
        falls = largest_fall(prompts, responses)
        shares = [_above(falls, drop) for drop in DROPS] + [_above(largest_gap(prompts, responses), GAP)]
        print(f"{prompts:7} × {responses:<11}" + "  ".join(f"{share:9.1%}" for share in shares))
    print(f"\nat {VALIDATIONS[0][0]} × {VALIDATIONS[0][1]} and drop {_DEFAULT.drop:g}")
    for name, values in (("patience", (1, 2, 3)), ("smoothing", (0.1, 0.3, 0.6, 1.0))):
        for value in values:
            falls = largest_fall(*VALIDATIONS[0], **{name: value})  # type: ignore[arg-type]
            print(f"{name} {value:<10}{_above(falls, _DEFAULT.drop):9.1%}")


def _above(values: Tensor, threshold: float) -> float:
    return float((values > threshold).double().mean())


if __name__ == "__main__":
    main()

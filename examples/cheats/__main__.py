"""Train on five rewards that can be had without the work, and say what the audit and the watch said of each, and when.

Usage: python -m examples.cheats [--only length] [--rollouts 60] [--directory runs/cheats] [--picture docs/pictures/cheats.png]

For each reward: an audit, a run with `RewardWatch`, and the same run on the cured reward. What is done is not done again. Needs matplotlib:
pip install -e '.[plots]'
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import torch

from examples.cheats.cases import CASES, Case
from examples.cheats.runs import LOOK, place_of, work
from examples.overoptimization.jobs import side_by_side
from examples.overoptimization.report import markdown

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).parents[2]


def table(directory: Path, cases: list[Case], rollouts: int) -> str:
    """Return a line a cheat."""
    heads = [
        "cheat",
        "meant",
        "pays for",
        "audit before the run",
        "`RewardWatch`, at rollout",
        "verifier",
        "reward",
        "then it answers",
        "cured: verifier",
    ]
    lines = []
    for case in cases:
        sick, well = (
            torch.load(place_of(directory, case, cured, rollouts), weights_only=False) for cured in (False, True)
        )
        said = "; ".join(f"{at}: {_kind(text)}" for at, text in sick.said)
        verifier, reward, cured = sick.looks["verifier"], sick.looks["reward"], well.looks["verifier"]
        prompt, answer = sick.samples[-1]
        lines.append(
            [
                case.name,
                case.meant,
                case.hole,
                sick.audit,
                said or "nothing",
                f"{verifier[0]:.2f}, best {max(verifier):.2f}, end {verifier[-1]:.2f}",
                f"{reward[0]:.2f} → {reward[-1]:.2f}",
                f"`{prompt}` → `{answer}`",
                f"{cured[0]:.2f} → {cured[-1]:.2f}" + (f" (watch: {len(well.said)})" if well.said else ""),
            ]
        )
    return markdown(heads, lines)


def _kind(text: str) -> str:
    return (
        "the verifier falls"
        if "the verifier" in text
        else "beyond the budget of 5 nats"
        if "divergence" in text
        else text
    )


def draw(directory: Path, cases: list[Case], rollouts: int, output: Path) -> None:
    """Draw reward and verifier of every cheat, and the verifier of its cure."""
    figure, axes = plt.subplots(1, len(cases), figsize=(3.2 * len(cases), 2.9), squeeze=False)
    for axis, case in zip(axes.flat, cases, strict=True):
        sick, well = (
            torch.load(place_of(directory, case, cured, rollouts), weights_only=False) for cured in (False, True)
        )
        at = [LOOK * look for look in range(len(sick.looks["reward"]))]
        axis.plot(at, sick.looks["verifier"], color="tab:red", label="verifier")
        axis.plot(at, well.looks["verifier"], color="tab:green", label="verifier, cured")
        for rollout, text in sick.said:
            axis.axvline(rollout, color="black" if "the verifier" in text else "grey", linestyle="--", linewidth=1)
        twin = axis.twinx()
        twin.plot(at, sick.looks["reward"], color="tab:blue", linestyle=":", label="reward")
        axis.set_ylim(0, 1)
        axis.set_title(case.name, fontsize=10)
        axis.set_xlabel("rollout", fontsize=8)
        axis.tick_params(labelsize=7)
        twin.tick_params(labelsize=7, colors="tab:blue")
    axes.flat[0].legend(fontsize=7)
    figure.tight_layout()
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=80)
    plt.close(figure)


def main() -> None:
    """Do what is not done, then draw and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[case.name for case in CASES])
    parser.add_argument("--rollouts", type=int, default=60)
    parser.add_argument("--parallel", type=int, default=2, help="runs side by side")
    parser.add_argument("--directory", type=Path, default=Path("runs/cheats"))
    parser.add_argument("--picture", type=Path, help="default: picture.png in the directory")
    options = parser.parse_args()
    cases = [case for case in CASES if options.only is None or case.name in options.only]
    directory = options.directory.resolve()
    jobs = [(directory, case.name, cured, options.rollouts) for case in cases for cured in (False, True)]
    side_by_side(work, [jobs], options.parallel, "run")
    picture = options.picture or directory / "picture.png"
    draw(directory, cases, options.rollouts, picture)
    text = table(directory, cases, options.rollouts)
    (directory / "table.md").write_text(text + "\n")
    print(f"\n{text}\n\nsaved {picture} and {directory / 'table.md'}")


if __name__ == "__main__":
    main()

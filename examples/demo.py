"""The demo: evaluate the embedded policy, train it with GRPO, evaluate it again.

Usage: python examples/demo.py [--seeds 0 1 2] [--rollouts N] [--config configs/grpo.yaml] [--directory runs/demo]
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from rl_lightning.cli import run


def evaluate(config: str, directory: Path, *overrides: str) -> dict[str, float]:
    """Return the metrics on the test problems, which are not trained on."""
    result = run(["test", f"--config={config}", f"--trainer.default_root_dir={directory}", *overrides])
    return {name: float(value) for name, value in result.trainer.callback_metrics.items()}


def train(config: str, directory: Path, seed: int, rollouts: int | None) -> float:
    """Train one policy; return the duration in seconds, with start-up and validation."""
    limit = [f"--trainer.max_epochs={rollouts}"] if rollouts else []
    started = time.perf_counter()
    run(["fit", f"--config={config}", f"--seed_everything={seed}", f"--trainer.default_root_dir={directory}", *limit])
    return time.perf_counter() - started


def main() -> None:
    """Run the demo for each seed and print a table of the test metrics."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/grpo.yaml")
    parser.add_argument("--directory", default="runs/demo", type=Path)
    parser.add_argument("--rollouts", type=int, help="fewer than the config says, for a quick look")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments = parser.parse_args()
    sys.argv = sys.argv[:1]  # Lightning's command line must not see this script's arguments
    shown = ("pass@1", "pass@8", "reward_mean", "length_mean")
    before = evaluate(arguments.config, arguments.directory / "before")
    rows = [("before", "", before)]
    for seed in arguments.seeds:
        directory = arguments.directory / f"seed-{seed}"
        seconds = train(arguments.config, directory, seed, arguments.rollouts)
        after = evaluate(arguments.config, directory, f"--model.policy={directory / 'hf'}", "--trainer.logger=false")
        rows.append((f"after, seed {seed}", f"{seconds:.0f} s", after))
    print(f"\n{'':<16}{'fit':>8}" + "".join(f"{name:>14}" for name in shown))
    for label, seconds_text, metrics in rows:
        print(f"{label:<16}{seconds_text:>8}" + "".join(f"{metrics['test/' + name]:>14.3f}" for name in shown))
    print(f"\nCurves, sampled answers and histograms:  tensorboard --logdir {arguments.directory}")


if __name__ == "__main__":
    main()

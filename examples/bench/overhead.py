"""Parts of the time of a training step, and the framework's share.

Usage: python -m examples.bench.overhead [--rollouts 30] [--config configs/grpo.yaml]

Times generation, rewards, scoring, forward, backward and the optimizer (with gradient clipping) of GRPO on the embedded policy.
All callbacks and loggers of the YAML are on, the progress bar is off. The rest of the wall time is the framework's. The first five
rollouts do not count.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from rl_lightning.cli import run

WARM_UP = 5


class Stopwatch(Callback):
    """Adds up the seconds of each part of the work."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.started = 0.0
        self.rollouts = 0

    def _timed(self, owner: Any, method: str, part: str) -> None:
        inner: Callable[..., Any] = getattr(owner, method)

        def outer(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            try:
                return inner(*args, **kwargs)
            finally:
                self.seconds[part] += time.perf_counter() - begin

        setattr(owner, method, outer)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wrap the functions of every part with a clock."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        self._timed(data.generator, "generate", "generation")
        self._timed(data.rewarder, "score", "rewards")
        self._timed(pl_module, "score", "scoring")
        self._timed(pl_module, "loss", "forward")
        self._timed(trainer.strategy, "backward", "backward")
        trainer.optimizers[0].register_step_post_hook(lambda *_: self._optimizer_done())

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Start the clock of the optimizer: gradient clipping and the update."""
        self._optimizer_began = time.perf_counter()

    def _optimizer_done(self) -> None:
        self.seconds["optimizer"] += time.perf_counter() - self._optimizer_began

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count after the first rollouts."""
        if trainer.current_epoch == WARM_UP:
            self.seconds.clear()
            self.started = time.perf_counter()
        self.rollouts = trainer.current_epoch + 1 - WARM_UP

    def report(self) -> dict[str, float]:
        """Return part → share of the wall time in percent."""
        total = time.perf_counter() - self.started
        shares = {part: 100 * seconds / total for part, seconds in self.seconds.items()}
        return {**shares, "framework": 100 - sum(shares.values()), "seconds_per_rollout": total / self.rollouts}


def main() -> None:
    """Train for some rollouts, and print the table and a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/grpo.yaml")
    parser.add_argument("--rollouts", type=int, default=30)
    arguments = parser.parse_args()
    sys.argv = sys.argv[:1]
    with tempfile.TemporaryDirectory() as directory:
        cli = run(
            [
                "fit",
                f"--config={arguments.config}",
                f"--trainer.default_root_dir={directory}",
                f"--trainer.max_epochs={arguments.rollouts + WARM_UP}",
                "--trainer.limit_val_batches=0",
                "--trainer.enable_progress_bar=false",
                "--trainer.callbacks+=examples.bench.overhead.Stopwatch",
            ]
        )
    # Found by name: run as a script, this file is another module than the one that the command line imported.
    watch: Any = next(one for one in cli.trainer.callbacks if type(one).__name__ == "Stopwatch")  # type: ignore[attr-defined]
    report = watch.report()
    seconds = report.pop("seconds_per_rollout")
    print(f"\n{seconds:.3f} s a rollout")
    for part, share in report.items():
        print(f"  {part:<12}{share:6.1f} %")
    line = {"name": "overhead", "framework_percent": round(report["framework"], 1), "own_s": round(seconds, 3)}
    print(json.dumps(line))


if __name__ == "__main__":
    main()

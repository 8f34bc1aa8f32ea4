"""Over-optimisation of reward models, measured: a gold reward, proxies that learnt from pairs, and what becomes of both.

Usage: python -m examples.overoptimization [--quick] [--seeds 1] [--directory runs/overoptimization] [--docs] [--report]

Proxies of three sizes learn from 50 to 4,000 pairs that a gold reward has ranked. The gold reward of best of n by each of them is
measured, and that of policies which GRPO and PPO train on them: alone, with a divergence penalty, as ensembles, and with a proxy that
learns again from the policy's own samples. Monitors of reward hacking are then run over all of these runs, and over runs whose reward is sound.

Every stage leaves its result in the directory; after an interruption the same command goes on. Needs matplotlib: pip install
-e '.[plots]'
"""

from __future__ import annotations

import argparse
from pathlib import Path

from examples.overoptimization.jobs import side_by_side
from examples.overoptimization.settings import FULL, SHORT
from examples.overoptimization.stages import Bench, work

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "docs" / "pictures" / "overoptimization.png"


def report(benches: list[Bench], picture: Path) -> str:
    """Draw the picture, and return the tables."""
    from examples.overoptimization.draw import draw
    from examples.overoptimization.report import (
        best_of_curves,
        best_of_table,
        monitor_table,
        run_curves,
        run_table,
        sound_audits,
        worths,
    )

    best_of, curves = best_of_curves(benches), run_curves(benches)
    runs = benches[0].study.runs
    draw(best_of, runs, curves, picture)
    seeds = f"{len(benches)} seed(s); ± is the standard error over {'seeds' if len(benches) > 1 else 'prompts'}"
    return "\n\n".join(
        [
            f"Best of n, {seeds}:",
            best_of_table(benches, best_of),
            f"Audits of sound rewards that alarm: {sound_audits(benches)}.",
            f"Training runs, {seeds}:",
            run_table(runs, curves),
            f"Monitors, on the runs of {len(benches)} seed(s):",
            monitor_table(worths(benches)),
        ]
    )


def main() -> None:
    """Do what is not done, then draw and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few and small proxies, eight short runs")
    parser.add_argument("--seeds", type=int, default=1, help="0 to this, less one")
    parser.add_argument("--parallel", type=int, default=2, help="stages side by side")
    parser.add_argument("--directory", type=Path, default=Path("runs/overoptimization"))
    parser.add_argument("--report", action="store_true", help="train nothing: draw and print what has been done")
    parser.add_argument("--docs", action="store_true", help="draw into docs/pictures, not into the directory")
    options = parser.parse_args()
    if options.seeds < 1:
        parser.error("--seeds must be at least 1")
    study = SHORT if options.quick else FULL
    directory = options.directory.resolve()
    benches = [Bench(study, seed, directory) for seed in range(options.seeds)]
    if options.report:
        for bench in benches:
            if not bench.path("sampled", "pool").exists():
                parser.error(
                    f"nothing of seed {bench.seed} is in {directory}: leave --report out to begin, or name another --directory"
                )
    else:
        waves = [[(bench, *job) for job in wave] for bench in benches for wave in bench.waves()]
        side_by_side(work, waves, options.parallel)
    benches = [bench.done() for bench in benches]
    picture = PICTURE if options.docs else directory / "picture.png"
    text = report(benches, picture)
    (directory / "tables.md").write_text(text + "\n")
    print(f"\n{text}\n\nsaved {picture} and {directory / 'tables.md'}")


if __name__ == "__main__":
    main()

"""The tables of the study, as Markdown."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

from examples.overoptimization.curves import Curve, best_of_curve, correlation, pooled, run_curve
from examples.overoptimization.monitors import HACKED, MONITORS, Worth, truth, worth
from examples.overoptimization.settings import FUNCTIONS, Run
from examples.overoptimization.stages import Bench


def best_of_curves(benches: Sequence[Bench]) -> dict[str, list[Curve]]:
    """Return the curves of best of n by every reward, one a seed."""
    found: dict[str, list[Curve]] = {}
    for bench in benches:
        pool, sizes = bench.pool(), bench.study.sizes.best_of
        for name, table in bench.rewards().items():
            found.setdefault(name, []).append(best_of_curve(table, pool, sizes))
    return found


def run_curves(benches: Sequence[Bench]) -> dict[str, list[Curve]]:
    """Return the curves of every run, one a seed."""
    found: dict[str, list[Curve]] = {}
    for bench in benches:
        start, scale, size = bench.start(), float(bench.pool().gold.std()), bench.study.sizes.bin
        for run in bench.study.runs:
            found.setdefault(run.name, []).append(run_curve(bench.run(run.name), start, scale, size))
    return found


def best_of_table(benches: Sequence[Bench], curves: dict[str, list[Curve]]) -> str:
    """Return a line a reward."""
    sizes = benches[0].study.sizes.best_of
    heads = [
        "reward", "held-out accuracy", "corr. with gold", "n*", "rise at n* (sd)", f"then fall to n = {sizes[-1]}", "√nats at the end",
        "audits that alarm", "R² quadratic, all / beyond half", "R² log, all / beyond half",
    ]  # fmt: skip
    lines = []
    for name, each in curves.items():
        mean = pooled(each)
        accuracies = [bench.proxy(name).accuracy for bench in benches if name in bench.study.proxies]
        related = statistics.fmean(correlation(bench.rewards()[name], bench.pool()) for bench in benches)
        alarms = statistics.fmean(bench.audits()[name] for bench in benches)
        peak = mean.peak
        lines.append(
            [
                name,
                f"{statistics.fmean(accuracies):.2f}" if accuracies else "–",
                f"{related:.2f}",
                str(sizes[peak]),
                f"{float(mean.gold[peak]):.2f} ± {float(mean.error[peak]):.2f}",
                f"{float(mean.gold[peak] - mean.gold[-1]):.2f}",
                f"{float(mean.distance[-1]):.2f}",
                f"{alarms:.1%}",
                *(_fits(mean, kind) for kind in ("quadratic", "log")),
            ]
        )
    return markdown(heads, lines)


def sound_audits(benches: Sequence[Bench]) -> str:
    """Return the share of small audits that alarm, of each sound reward; correctness is the verifier itself."""
    shares = {
        name: statistics.fmean(bench.audits()[name] for bench in benches) for name in FUNCTIONS if name != "right"
    }
    return ", ".join(f"{name} {share:.1%}" for name, share in shares.items())


def run_table(runs: Sequence[Run], curves: dict[str, list[Curve]]) -> str:
    """Return a line a run."""
    heads = [
        "run", "√nats at the peak", "gold at the peak (sd)", "√nats at the end", "gold at the end", "R² quadratic, all / beyond half",
        "R² log, all / beyond half",
    ]  # fmt: skip
    lines = []
    for run in runs:
        mean = pooled(curves[run.name])
        peak = mean.peak
        rising = " (the end)" if peak == len(mean.gold) - 1 else ""
        lines.append(
            [
                run.name,
                f"{float(mean.distance[peak]):.1f}{rising}",
                f"{float(mean.gold[peak]):.2f} ± {float(mean.error[peak]):.2f}",
                f"{float(mean.distance[-1]):.1f}",
                f"{float(mean.gold[-1]):.2f} ± {float(mean.error[-1]):.2f}",
                *(_fits(mean, kind) for kind in ("quadratic", "log")),
            ]
        )
    return markdown(heads, lines)


def _fits(curve: Curve, kind: str) -> str:
    whole, beyond = curve.fits(kind)  # type: ignore[arg-type]
    return f"{whole:.2f} / " + ("–" if math.isnan(beyond) else f"{beyond:.1f}")


def worths(benches: Sequence[Bench]) -> list[Worth]:
    """Return what every monitor is worth on the runs of all seeds."""
    hacked, clean = {}, {}
    for bench in benches:
        start, scale = bench.start(), float(bench.pool().gold.std())
        for run in bench.study.runs:
            gold = [
                statistics.fmean(
                    value - start[row[0]] for value, row in zip(step.gold.tolist(), step.rows, strict=True)
                )
                / scale
                for step in bench.run(run.name)
            ]
            peak, fall = truth(gold)
            if run.clean:
                clean[f"{run.name} {bench.seed}"] = bench.signals(run.name)
            elif fall > HACKED:
                hacked[f"{run.name} {bench.seed}"] = peak, bench.signals(run.name)
    return [worth(monitor, hacked, clean) for monitor in MONITORS]


def monitor_table(found: Sequence[Worth]) -> str:
    """Return a line a monitor."""
    heads = ["signal", "AUC", "threshold", "found", "delay, rollouts", "false alarms", "the library"]
    return markdown(
        heads,
        [
            [
                one.monitor.name,
                f"{one.auc:.2f}",
                f"{one.monitor.threshold:g}",
                f"{one.found} of {one.hacked}",
                f"{statistics.median(one.delays):.0f} [{min(one.delays)}, {max(one.delays)}]" if one.delays else "–",
                f"{one.false} of {one.clean}",
                one.monitor.advice,
            ]
            for one in found
        ],
    )


def markdown(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a table; a bar in a cell does not end it."""
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)

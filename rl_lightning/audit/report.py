"""What an audit found, as a table and as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rl_lightning.audit.verdicts import Answers, Verdict
from rl_lightning.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def report(verdicts: Sequence[Verdict], verifier: str, answers: Answers) -> str:
    """Return a table of verdicts, a line a reward."""
    prompts, count = answers.lengths.shape
    sizes = list(verdicts[0].best_of)
    heads = [
        "reward",
        "rank corr. with verifier",
        "with length",
        *(f"best of {n}" for n in sizes),
        "spread",
        "ties",
        "failed",
    ]
    lines = [[*heads, "verdict"]]
    for one in verdicts:
        best = [f"{mean:.3f} ± {error:.3f}" for mean, error in one.best_of.values()]
        numbers = [_number(one.with_verifier), _number(one.with_length), *best, f"{one.spread:.3g}"]
        lines.append(
            [
                f"{one.reward} *" if one.trained else one.reward,
                *numbers,
                f"{one.ties:.0%}",
                f"{one.failed:.0%}",
                one.text,
            ]
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    title = f"{prompts} prompts × {count} answers; under 'best of n' what the verifier {verifier} says of it, ± 1 standard error"
    foot = ["* what training would maximise"] if any(one.trained for one in verdicts) else []
    return "\n".join([title, *table, *foot])


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:+.2f}"


def figure_for(path: str | Path) -> Figure:
    """Return an empty figure, once it is known that it can be saved there: before anything is sampled for it.

    Args:
        path: of the picture; the ending says its format.

    Raises:
        UserError: if matplotlib is not installed, or does not know the ending.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("a picture needs matplotlib: pip install 'rl_lightning[plots]'") from error
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    known = figure.canvas.get_supported_filetypes()
    ending = Path(path).suffix.lower().lstrip(".") or "png"
    if ending not in known:
        raise UserError(f"picture {path}: matplotlib writes no {ending}, but {', '.join(sorted(known))}")
    return figure


def draw(verdicts: Sequence[Verdict], verifier: str, path: str | Path) -> None:
    """Draw the verifier at the best of n by each reward, against n, with bars of one standard error.

    Args:
        verdicts: of one audit.
        verifier: its name.
        path: see `figure_for`.
    """
    figure = figure_for(path)
    axes = figure.subplots()
    for one in verdicts:
        sizes = list(one.best_of)
        means, errors = zip(*one.best_of.values(), strict=True)
        style = "--" if one.reward == verifier else "-"
        axes.errorbar(
            sizes, means, yerr=errors, fmt=f"o{style}", capsize=3, label=one.reward + (" (alarm)" if one.alarm else "")
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set_xlabel("n")
    axes.set_ylabel(f"{verifier} of the best of n by each reward")
    axes.legend()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)

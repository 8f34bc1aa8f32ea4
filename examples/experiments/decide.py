"""The rules of predictions.md: from numbers, a seed each, to what happened and whether it is what was predicted."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from examples.experiments.rig import paired

#: Name → a number a seed.
Numbers = Mapping[str, Sequence[float]]
#: Seeds out of five that a prediction about single seeds must hold in.
_MOST = 4


@dataclass(frozen=True)
class Outcome:
    """What came of a prediction.

    Args:
        held: whether it came true, by its rule.
        happened: in words and numbers.
    """

    held: bool
    happened: str


def _means(numbers: Numbers, *names: str) -> str:
    return "; ".join(f"{name} = {statistics.fmean(numbers[name]):.4g}" for name in names)


def _in_order(numbers: Numbers, *names: str) -> int:
    """Return in how many seeds these numbers fall."""
    rows = list(zip(*(numbers[name] for name in names), strict=True))
    return sum(all(one > other for one, other in itertools.pairwise(row)) for row in rows)


def e1a(found: Numbers) -> Outcome:
    """The share that is clipped falls with the bound."""
    names = ("clipped 0.2", "clipped 0.28", "clipped 0.5")
    held = _in_order(found, *names)
    return Outcome(
        held == len(found[names[0]]),
        f"{_means(found, *names)}; in this order in {held} of {len(found[names[0]])} seeds",
    )


def e1b(found: Numbers) -> Outcome:
    """The entropy is higher with the higher bound."""
    apart = paired(found["entropy 0.28"], found["entropy 0.2"])
    return Outcome(
        apart.above >= _MOST,
        f"0.28 less 0.2: {apart} nats a token; at 0.5 {statistics.fmean(found['entropy 0.5']):.3g}",
    )


def e2a(found: Numbers) -> Outcome:
    """The kept share is that of the formula."""
    apart = paired(found["kept"], found["kept, formula"])
    return Outcome(abs(apart.mean) < 2 * apart.error, f"{_means(found, 'kept', 'kept, formula')}; {apart}")


def e2b(found: Numbers) -> Outcome:
    """As many updates are worth more."""
    apart = paired(found["on"], found["off"])
    return Outcome(apart.above >= _MOST, f"{_means(found, 'on', 'off')}; {apart}")


def e2c(found: Numbers) -> Outcome:
    """As many answers are worth the same."""
    apart = paired(found["on"], found["off, as many answers"])
    same = abs(apart.mean) <= 2 * apart.error
    return Outcome(same, f"{_means(found, 'on', 'off, as many answers', 'rollouts, as many answers')}; {apart}")


def e3(found: Numbers) -> Outcome:
    """Wrong answers grow with the mean over each answer."""
    first = paired(found["seq_mean"], found["token_mean"])
    second = paired(found["constant"], found["token_mean"])
    means = _means(found, "seq_mean", "token_mean", "constant")
    said = f"tokens of a wrong answer: {means}; seq_mean less token_mean {first}; constant less token_mean {second}"
    return Outcome(first.clear and not second.clear, said)


def e4(found: Numbers) -> Outcome:
    """Shaping shortens, filtering does not."""
    one, other = _in_order(found, "nothing", "shaping"), _in_order(found, "filter", "nothing")
    said = f"{_means(found, 'shaping', 'nothing', 'filter')}; shaping < nothing in {one}, nothing < filter in {other} seeds"
    return Outcome(min(one, other) >= _MOST, said)


def e5(found: Numbers) -> Outcome:
    """What pushes wrong answers away learns most."""
    apart = paired(found["GRPO"], found["RFT"])
    means = [statistics.fmean(found[name]) for name in ("GRPO", "online RFT", "RFT")]
    ordered = means[0] >= means[1] >= means[2]
    return Outcome(apart.clear and ordered, f"{_means(found, 'GRPO', 'online RFT', 'RFT')}; GRPO less RFT {apart}")


def e6(found: Numbers) -> Outcome:
    """Sums prefer length."""
    positive = all(value > 0 for name in ("margin mean", "margin sum") for value in found[name])
    apart = paired(found["length sum"], found["length mean"])
    said = f"{_means(found, 'margin mean', 'margin sum', 'length before', 'length mean', 'length sum')}; sum less mean {apart} tokens"
    return Outcome(positive and apart.clear, said)


def e7(found: Numbers) -> Outcome:
    """A critic costs what its parameters cost."""
    apart = max(abs(one / other - 1) for one, other in zip(found["ratio"], found["predicted"], strict=True))
    return Outcome(apart <= 1e-3, f"{_means(found, 'ratio', 'predicted')}")


def e8(found: Numbers) -> Outcome:
    """The scale of advantages is the closed form's."""
    apart = max(
        abs(one / other - 1)
        for name in ("std", "none")
        for one, other in zip(found[name], found[f"{name}, formula"], strict=True)
    )
    return Outcome(
        apart <= 0.1, f"{_means(found, 'std', 'std, formula', 'none', 'none, formula')}; at most {apart:.1%} off"
    )


def e9a(found: Numbers) -> Outcome:
    """Mean gradients are the closed forms'."""
    worst = {name: max(found[name]) for name in ("k1", "k2", "k3")}
    return Outcome(
        max(worst.values()) <= 0.05,
        "off by at most " + ", ".join(f"{name} {value:.1%}" for name, value in worst.items()),
    )


def e9b(found: Numbers) -> Outcome:
    """What descends, stalls, and does nothing."""
    rows = zip(*(found[name] for name in ("k1 loss", "k3 reward", "k2 loss", "k1 reward")), strict=True)
    held = sum(first > second > max(third, fourth) and first > 0.9 for first, second, third, fourth in rows)
    seeds = len(found["k1 loss"])
    said = _means(found, "k1 loss", "k3 reward", "k3 loss", "k2 loss", "k1 reward")
    return Outcome(held == seeds, f"left of 1 nat: {said}; in this order in {held} of {seeds} seeds")


RULES: Mapping[str, Callable[[Numbers], Outcome]] = {
    "E1a": e1a, "E1b": e1b, "E2a": e2a, "E2b": e2b, "E2c": e2c, "E3": e3, "E4": e4, "E5": e5, "E6": e6, "E7": e7, "E8": e8,
    "E9a": e9a, "E9b": e9b,
}  # fmt: skip

"""Two workers that take turns, step by step, and the summary of their times."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, Protocol

from examples.bench.meter import Others

if TYPE_CHECKING:
    from rl_lightning.models.roofline import Limits


class Side(Protocol):
    """One of the two workers."""

    def ask(self, command: str) -> dict[str, float]:
        """Send a command and return the answer."""


@dataclass
class Measured:
    """Measurements of the steps that count.

    Args:
        own, peer: answers to `step`, in the order of the pairs; `peer` is empty if there is none.
        own_peak, peer_peak: bytes.
        other_cpu: cores that other processes kept busy during the steps.
    """

    own: list[dict[str, float]]
    peer: list[dict[str, float]]
    own_peak: float = 0.0
    peer_peak: float = 0.0
    other_cpu: float = 0.0


def take_turns(own: Side, peer: Side | None, pairs: int, warm_up: int) -> Measured:
    """Let both sides do step after step: A B, B A, A B, ...

    Args:
        own, peer: the sides; no peer if None.
        pairs: number of pairs of steps that count.
        warm_up: steps of each side before that, which do not count.
    """
    for side in (own, peer):
        for _ in range(warm_up if side is not None else 0):
            assert side is not None
            side.ask("step")
    found = Measured([], [])
    others = Others()
    for pair in range(pairs):
        turn = [(own, found.own)] if peer is None else [(own, found.own), (peer, found.peer)]
        for side, steps in turn[:: -1 if pair % 2 else 1]:
            steps.append(side.ask("step"))
    found.other_cpu = others.cores()
    found.own_peak = own.ask("memory")["peak"]
    found.peer_peak = 0.0 if peer is None else peer.ask("memory")["peak"]
    return found


def summary(
    name: str, found: Measured, peer: str | None, by_token: bool, limits: Callable[[], Limits] | None = None
) -> dict[str, Any]:
    """Return the JSON line of a benchmark.

    Args:
        name: of the benchmark.
        found: the measurements.
        peer: name of the other library; None if there is none.
        by_token: compare seconds per token, since steps of the two sides hold different tokens.
        limits: measures the machine's limits, for steps that report their FLOPs and bytes.

    Raises:
        SystemExit: if steps that should hold the same tokens do not.
    """
    own_s = [step["seconds"] for step in found.own]
    line: dict[str, Any] = {"name": name, "ratio": None, "ratio_min": None, "ratio_max": None, "peer": peer}
    line |= {"memory_ratio": None, "pairs": len(found.own), "own_s": round(median(own_s), 4), "peer_s": None}
    line |= {"tokens_per_s": round(sum(step["tokens"] for step in found.own) / sum(own_s), 1)}
    line |= {
        "cpu_ratio": None,
        "other_cpu": round(found.other_cpu, 2),
        "own_cpu": round(_cores(found.own), 2),
        "peer_cpu": None,
    }
    line |= {"roofline": _share(found.own, limits) if limits and "flops" in found.own[0] else None}
    line |= {"own_gb": round(found.own_peak / 1e9, 2), "peer_gb": None}
    if not found.peer:
        return line
    pairs = list(zip(found.own, found.peer, strict=True))
    ratios = sorted(_ratio(*pair, by_token) for pair in pairs)
    line |= {"ratio": round(median(ratios), 3), "ratio_min": round(ratios[0], 3), "ratio_max": round(ratios[-1], 3)}
    line |= {"memory_ratio": round(found.own_peak / found.peer_peak, 3), "peer_gb": round(found.peer_peak / 1e9, 2)}
    line |= {"peer_s": round(median(step["seconds"] for step in found.peer), 4)}
    # Other processes that take cores away disturb CPU seconds less than seconds.
    line |= {"cpu_ratio": round(median(_ratio(*pair, by_token, of="cpu_seconds") for pair in pairs), 3)}
    return line | {"peer_cpu": round(_cores(found.peer), 2)}


def _ratio(own: Mapping[str, float], peer: Mapping[str, float], by_token: bool, of: str = "seconds") -> float:
    """Return the peer's time / ours for the same work."""
    if by_token:
        return (peer[of] / peer["tokens"]) / (own[of] / own["tokens"])
    if own["tokens"] != peer["tokens"]:
        raise SystemExit(f"not the same work: a step of {own['tokens']} tokens beside one of {peer['tokens']}")
    return peer[of] / own[of]


def _share(steps: Sequence[Mapping[str, float]], limits: Callable[[], Limits]) -> float:
    """Return the least time that the steps could take on this machine / the time that they took."""
    machine = limits()
    least = sum(machine.least_seconds(step["flops"], step["bytes"]) for step in steps)
    return round(least / sum(step["seconds"] for step in steps), 3)


def _cores(steps: Sequence[Mapping[str, float]]) -> float:
    return sum(step["cpu_seconds"] for step in steps) / sum(step["seconds"] for step in steps)

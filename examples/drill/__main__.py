"""Kill runs of every algorithm at random moments, resume them, and compare each with the uninterrupted run.

    python -m examples.drill --kills 50

Compared bit for bit: weights, optimizer, schedule, counters and the state of data and callbacks in the last checkpoint; every curve,
histogram and table in TensorBoard, where a value that is logged twice must be the same both times; and the exported model.
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
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.drill.results import differences, last_checkpoint, result
from rl_lightning.callbacks.graceful_stop import STOPPED_EARLY

ALGORITHMS = ("sft", "rft", "rft_online", "dpo", "reward_model", "ppo", "grpo", "dapo", "episodes")
#: Runs whose configuration has another name.
CONFIGS = {"episodes": "grpo"}
#: Signal → its share of the kills.
SIGNALS = {signal.SIGKILL: 6, signal.SIGTERM: 3, signal.SIGINT: 1}
#: A run that ends before its signal is repeated this often. A run may take this many times as long as the uninterrupted one.
_ATTEMPTS, _PATIENCE = 8, 20


@dataclass(frozen=True)
class Kill:
    """Plan for one run that is killed.

    Args:
        number: of the run, from 0.
        algorithm: the run's YAML.
        moments: when to kill it, as shares of the run's duration; a second moment kills the resumed run.
        signals: one signal per moment.
    """

    number: int
    algorithm: str
    moments: list[float]
    signals: list[signal.Signals]


def start(algorithm: str, directory: Path, resume: bool) -> subprocess.Popen[bytes]:
    """Start or resume a run in its own process, with its output in a file."""
    here = Path(__file__).parent
    base = CONFIGS.get(algorithm, algorithm)
    configs = (here.parents[1] / "configs" / f"{base}.yaml", here / "common.yaml", here / f"{algorithm}.yaml")
    command = [sys.executable, "-m", "rl_lightning", "fit", *(f"--config={path}" for path in configs)]
    command += [f"--trainer.default_root_dir={directory}"] + (["--ckpt_path=last"] if resume else [])
    directory.mkdir(parents=True, exist_ok=True)
    # The number of threads must be the same: rounding of sums depends on how they are split.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (directory / "output.txt").open("ab") as output:
        return subprocess.Popen(command, stdout=output, stderr=output, env=environment)


def undisturbed(algorithm: str, directory: Path) -> tuple[dict[str, Any], float]:
    """Run an algorithm without interruption; return its result and its duration in seconds."""
    began = time.monotonic()
    if start(algorithm, directory, resume=False).wait() != 0:
        sys.exit(f"{algorithm} fails when left alone: see {directory / 'output.txt'}")
    return result(directory), time.monotonic() - began


def disturbed(kill: Kill, directory: Path, seconds: float) -> str:
    """Run, kill and resume as planned; return the lines of what happened."""
    story = []
    for moment, number in zip(kill.moments, kill.signals, strict=True):
        after = moment * seconds
        for attempt in range(_ATTEMPTS):
            if attempt:  # The run ended before the signal: repeat it, with an earlier one.
                shutil.rmtree(directory)
                after *= 0.75
            status = _kill(kill.algorithm, directory, after, number, seconds)
            if status != 0 or story or not (directory / "hf").is_dir():
                break
        else:
            return f"FAILED: {number.name} came too late {_ATTEMPTS} times, or was not heard"
        if status == 0 and not (directory / "hf").is_dir():
            story.append("FAILED: status 0, but it is not done")
        early = {0: "done before", STOPPED_EARLY: "saved"}.get(status, "killed")
        story.append(f"{number.name} after {after:.1f} s, {early} at step {_step(directory)}")
    if (status := _end(start(kill.algorithm, directory, resume=_can_resume(directory)), seconds)) != 0:
        story.append(f"FAILED with status {status} when going on")
    return ", ".join(story)


def _kill(algorithm: str, directory: Path, after: float, number: signal.Signals, seconds: float) -> int:
    """Start or resume a run and send a signal after some seconds; return the exit status, 0 if the run ended before."""
    process = start(algorithm, directory, resume=_can_resume(directory))
    try:
        return process.wait(after)
    except subprocess.TimeoutExpired:
        process.send_signal(number)
    return _end(process, seconds)


def _end(process: subprocess.Popen[bytes], seconds: float) -> int:
    """Wait for the end of a run and return its exit status; kill it if it takes many times its usual duration."""
    try:
        return process.wait(_PATIENCE * seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _can_resume(directory: Path) -> bool:
    return any(directory.rglob("last*.ckpt"))


def _step(directory: Path) -> int:
    return int(last_checkpoint(directory)["global_step"]) if _can_resume(directory) else 0


def draw_kills(count: int, seed: int, algorithms: Sequence[str] = ALGORITHMS) -> list[Kill]:
    """Return the plans of all kills: each algorithm equally often, every fourth run killed twice."""
    chance = random.Random(seed)
    kills = []
    for number in range(count):
        times = 1 + (chance.random() < 0.25)
        signals = chance.choices(list(SIGNALS), list(SIGNALS.values()), k=times)
        # In the first seconds the run has not begun and little can be lost, so fewer kills fall there.
        moments = [chance.betavariate(2, 1.2) for _ in range(times)]
        kills.append(Kill(number, algorithms[number % len(algorithms)], moments, signals))
    return kills


def drilled(kill: Kill, directory: Path, expected: dict[str, Any], seconds: float) -> tuple[str, list[str]]:
    """Drill one run; return what happened, and the first difference from the uninterrupted run, if any.

    A run that differs stays in its directory, with the list of all differences in `differences.txt`.
    """
    story = disturbed(kill, directory, seconds)
    try:
        found = (
            [f"see {directory / 'output.txt'}"] if "FAILED" in story else list(differences(result(directory), expected))
        )
    except (ValueError, OSError) as error:
        found = [str(error)]
    if found:
        (directory / "differences.txt").write_text("\n".join([story, *found, ""]))
    else:
        shutil.rmtree(directory)
    return story, found


def main() -> None:
    """Run the drill; exit with status 1 unless all runs are identical."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="how many runs are killed")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--only", nargs="+", choices=ALGORITHMS, default=ALGORITHMS, help="runs of these alone")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time")
    parser.add_argument("--directory", type=Path, default=Path("runs/drill"), help="gets a folder for each drill")
    options = parser.parse_args()
    # Background jobs of a shell ignore Ctrl-C, and so do the processes that they start: restore the default.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    place = options.directory / time.strftime(f"%Y%m%d-%H%M%S-seed-{options.seed}")
    place.mkdir(parents=True)
    kills = draw_kills(options.kills, options.seed, options.only)
    identical = 0

    with ThreadPoolExecutor(options.jobs) as pool, (place / "drill.txt").open("w", buffering=1) as record:

        def say(line: str) -> None:
            print(line, flush=True)
            record.write(line + "\n")

        names = sorted({kill.algorithm for kill in kills})
        alone = dict(zip(names, pool.map(lambda name: undisturbed(name, place / name), names), strict=True))
        for name, (_, seconds) in alone.items():
            say(f"{name}: {seconds:.1f} s when left alone")

        def drill(kill: Kill) -> tuple[str, list[str]]:
            return drilled(kill, place / f"{kill.number:03d}-{kill.algorithm}", *alone[kill.algorithm])

        for kill, (story, found) in zip(kills, pool.map(drill, kills), strict=True):
            identical += not found
            verdict = f"DIFFERENT in {len(found)} place(s), first {found[0]}" if found else "identical"
            say(f"{kill.number + 1:3d}/{len(kills)} {kill.algorithm:<12} {story}: {verdict}")
        say(f"{identical} of {len(kills)} identical")
    if identical == len(kills):
        shutil.rmtree(place)
    else:
        print(f"what differs, and the runs that were left alone, are in {place}")
    sys.exit(identical != len(kills))


if __name__ == "__main__":
    main()

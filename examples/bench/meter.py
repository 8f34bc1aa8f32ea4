"""CPU time and memory of processes, from the kernel's /proc."""

from __future__ import annotations

import os
import time
from pathlib import Path

_PROC = Path("/proc")
_TICKS = os.sysconf("SC_CLK_TCK")


def family(pid: int) -> list[int]:
    """Return the ids of a process and of its descendants that are still alive."""
    found, waiting = [], [pid]
    while waiting:
        one = waiting.pop()
        try:
            lists = [path.read_text() for path in (_PROC / str(one) / "task").glob("*/children")]
        except (FileNotFoundError, ProcessLookupError):
            continue
        found.append(one)
        waiting += [int(child) for text in lists for child in text.split()]
    return found


def cpu_seconds(pid: int) -> float:
    """Return the CPU seconds of a process and its descendants so far, with those of children that have ended."""
    total = 0
    for one in family(pid):
        try:
            text = (_PROC / str(one) / "stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        # The process's name, in brackets, may hold any character. After it: user and system time, and those of ended children.
        total += sum(map(int, text.rpartition(")")[2].split()[11:15]))
    return total / _TICKS


def peak_of(pid: int) -> int:
    """Return the largest resident size of one process so far, in bytes; 0 if it has ended."""
    try:
        lines = (_PROC / str(pid) / "status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def peak_bytes(pid: int) -> int:
    """Return the sum of the largest resident sizes of a process and its descendants."""
    return sum(map(peak_of, family(pid)))


def busy_seconds() -> float:
    """Return the CPU seconds that all cores together have worked since the machine started."""
    user, nice, system, _idle, _waiting, irq, soft, stolen = map(
        int, (_PROC / "stat").read_text().splitlines()[0].split()[1:9]
    )
    return (user + nice + system + irq + soft + stolen) / _TICKS


class Others:
    """Measures how busy the machine is with processes other than this one and its descendants."""

    def __init__(self) -> None:
        self._began = (time.perf_counter(), busy_seconds(), cpu_seconds(os.getpid()))

    def cores(self) -> float:
        """Return how many cores these kept busy on average since this object was made."""
        clock, busy, own = self._began
        others = busy_seconds() - busy - (cpu_seconds(os.getpid()) - own)
        # The kernel rounds the two counts differently, so the difference may be slightly negative.
        return max(0.0, others) / (time.perf_counter() - clock)

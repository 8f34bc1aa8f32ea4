"""The protocol between the benchmark and its two workers: lines on a pipe.

A worker is told `step`, does one step of its work and answers with its seconds, CPU seconds and tokens, some also with
the FLOPs and bytes that it needs; told `memory`, it answers
with its peak; told `stop`, it ends. It begins to look for commands once everything is loaded.
"""

from __future__ import annotations

import json
import os
import sys
import time
from functools import cache
from typing import TextIO

from examples.bench.meter import cpu_seconds, peak_bytes


class Turns:
    """The worker's end.

    A step is everything between two calls of `wait`: whatever a training loop does around its steps counts too.

    Args:
        commands: where they come from, one a line.
        answers: where JSON lines go to.
    """

    def __init__(self, commands: TextIO, answers: TextIO) -> None:
        self._commands = commands
        self._answers = answers
        self._began: tuple[float, float] | None = None
        #: Tokens of this step so far; whoever does the work counts them.
        self.tokens = 0
        #: FLOPs of this step, and bytes that it must read; None if nobody counts them.
        self.needs: tuple[float, float] | None = None

    def wait(self) -> None:
        """Report the step that has ended, if one has, and return when the next is to begin.

        Raises:
            SystemExit: when there is none.
        """
        if self._began is not None:
            seconds, cpu = time.perf_counter() - self._began[0], cpu_seconds(os.getpid()) - self._began[1]
            answer = {"seconds": seconds, "cpu_seconds": cpu, "tokens": self.tokens}
            if self.needs is not None:
                answer |= dict(zip(("flops", "bytes"), self.needs, strict=True))
            self._answer(answer)
            self._began = None
        for line in self._commands:
            match line.strip():
                case "step":
                    self.tokens = 0
                    self._began = (time.perf_counter(), cpu_seconds(os.getpid()))
                    return
                case "memory":
                    self._answer({"peak": peak_bytes(os.getpid())})
                case "stop":
                    break
                case unknown:
                    raise ValueError(f"there is no command {unknown!r}")
        raise SystemExit(0)

    def _answer(self, fields: dict[str, float]) -> None:
        print(json.dumps(fields), file=self._answers, flush=True)


@cache
def turns() -> Turns:
    """Return this process's, on its standard input and output; what others print goes to standard error from then on."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return Turns(sys.stdin, answers)

"""The protocol between the benchmark and its two workers: lines on a pipe.

    command   answer (one JSON line)
    step      seconds, CPU seconds and tokens of one step; some workers add FLOPs and bytes
    memory    the peak in bytes
    stop      none: the worker ends

A worker reads its first command when everything is loaded.
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
        #: Tokens of this step so far; the worker's code adds to it.
        self.tokens = 0
        #: FLOPs of this step and bytes that it must read; None if they are not counted.
        self.needs: tuple[float, float] | None = None

    def wait(self) -> None:
        """Report the step that has ended, if there was one, and wait for the command to begin the next.

        Raises:
            SystemExit: on `stop`.
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
    """Return the turns of this process, on its standard input and output; all other output goes to standard error from then on."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return Turns(sys.stdin, answers)

"""The processes of a worker pool, and the functions that they know."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rl_lightning.rewards.messages import Preparation
from rl_lightning.rewards.pickled import dumps
from rl_lightning.rewards.process import Worker

#: What a worker calls: a dotted path, or the function itself.
Function = str | Callable[..., object]


@dataclass
class Crew:
    """Workers that run.

    Args:
        size: number of workers.
        settings: of each.
        start_timeout_s: longest time in seconds for a worker to start with its setup, and for each import.
    """

    size: int
    settings: Preparation
    start_timeout_s: float
    running: list[Worker] = field(default_factory=list)
    #: Each function and its pickle, by key. The function itself is kept so that no other object can take over its id.
    functions: list[tuple[Function, bytes]] = field(default_factory=list)
    _keys: dict[str | int, int] = field(default_factory=dict)

    def key(self, function: Function) -> int:
        """Return the key of a function, pickling it the first time it is seen."""
        identity = function if isinstance(function, str) else id(function)
        if identity not in self._keys:
            pickled = dumps(function)
            self._keys[identity] = len(self.functions)
            self.functions.append((function, pickled))
        return self._keys[identity]

    def start(self) -> None:
        """Replace workers that have ended while nobody looked, and start those that are missing."""
        for worker in [worker for worker in self.running if worker.gone()]:
            self.running.remove(worker)
            worker.kill()
        self.fill_up()

    def fill_up(self) -> None:
        """Start the workers that are missing."""
        while len(self.running) < self.size:
            worker = Worker({**self.settings, "sys_path": list(sys.path)}, self.start_timeout_s)
            for key, (_, pickled) in enumerate(self.functions):
                worker.define(key, pickled)
            self.running.append(worker)


def kill_all(running: list[Worker], owner: int) -> None:
    """End workers, and forget them.

    Args:
        running: the workers; empty afterwards.
        owner: the process that started them. A fork of it inherits the list, but the processes are not its children.
    """
    ended: Sequence[Worker] = running.copy()
    running.clear()
    if os.getpid() == owner:
        for worker in ended:  # all at once, for each may take a while to end
            worker.interrupt()
        for worker in ended:
            worker.kill()

"""Examples from reasoning-gym: some hundred tasks, made to order."""

from __future__ import annotations

import importlib.util
import logging
import os
import pickle
import subprocess
import sys
from typing import Any, cast

from rl_lightning.data.sources import reasoning_gym_draw
from rl_lightning.data.sources.base import Example, ExampleSource, Gold, Split
from rl_lightning.data.sources.reasoning_gym_draw import Entry
from rl_lightning.errors import UserError

log = logging.getLogger(__name__)

# With `python FILE` the folder of this very file would be searched first, and it has a module named reasoning_gym.
_RUN = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__')"


class ReasoningGym(ExampleSource):
    """Problems of one reasoning-gym task, made from a seed.

    No question occurs twice, and none in two splits: the test questions are drawn first, then validation questions
    that are not among them, then training questions that are in neither. So the held-out questions do not depend on
    ``train_size``, and a larger training split begins with a smaller one. If a task has not enough different
    questions, that is an error which says how many there are.

    The questions are drawn in a process of their own, all splits at once, when first needed. Some tasks put into a
    question whatever order a set happens to have, which Python draws anew for each process unless it is told
    otherwise at its start: a resumed run, or another rank, would get other questions.

    Each example's ``metadata["reasoning_gym"]`` is ``{"task": task, "entry": entry}``, with the entry as reasoning-gym
    made it, for the task's own scoring. A task that has many right answers may have no gold answer.

    Args:
        task: name of the task, such as ``countdown``.
        train_size, val_size, test_size: problems in each split.
        seed: of the problems.
        arguments: options of the task, such as ``{min_terms: 2, max_terms: 3}``.
        prompt_suffix: written on a line of its own below each question, such as an instruction on how to answer.

    Raises:
        UserError: if a size is negative, or all are zero.
    """

    default_reward = "rl_lightning.rewards.functions.reasoning_gym_score"

    def __init__(
        self,
        task: str,
        train_size: int = 10_000,
        val_size: int = 256,
        test_size: int = 512,
        seed: int = 0,
        arguments: dict[str, Any] | None = None,
        prompt_suffix: str | None = None,
    ) -> None:
        sizes: dict[Split, int] = {"train": train_size, "val": val_size, "test": test_size}
        if min(sizes.values()) < 0 or not any(sizes.values()):
            raise UserError(f"ReasoningGym: sizes must be 0 or more, and not all 0: {sizes}")
        self.task = task
        self.sizes = sizes
        self.seed = seed
        self.arguments = arguments or {}
        self.prompt_suffix = prompt_suffix
        self._entries: dict[Split, list[Entry]] | None = None

    def load(self, split: Split) -> list[Example]:
        """Return the problems of a split, in an order fixed by the seed.

        Raises:
            UserError: if reasoning-gym is not installed, there is no such task or option, the task has not enough
                different questions, or the split has size 0.
        """
        if not self.sizes[split]:
            raise UserError(f"ReasoningGym: the {split} split is asked for, but {split}_size is 0")
        if self._entries is None:
            self._entries = self._draw()
        return [self._example(split, number, entry) for number, entry in enumerate(self._entries[split], start=1)]

    def _example(self, split: Split, number: int, entry: Entry) -> Example:
        """Turn an entry into an example."""
        prompt, answer = str(entry["question"]), cast("Gold | None", entry["answer"])
        if self.prompt_suffix is not None:
            prompt = f"{prompt.rstrip()}\n{self.prompt_suffix}"
        return Example(
            prompt=prompt,
            answer=answer,
            metadata={"reasoning_gym": {"task": self.task, "entry": entry}},
            location=f"reasoning_gym/{self.task} {split} {number}",
        )

    def _draw(self) -> dict[Split, list[Entry]]:
        """Draw the entries of all splits, in a process whose hashes are fixed."""
        if importlib.util.find_spec("reasoning_gym") is None:
            raise UserError("ReasoningGym needs reasoning-gym: pip install 'rl_lightning[tasks]'")
        environment = {
            **os.environ,
            "PYTHONHASHSEED": "0",
            "PYTHONPATH": os.pathsep.join(folder or os.getcwd() for folder in sys.path),
        }
        done = subprocess.run(
            [sys.executable, "-c", _RUN, reasoning_gym_draw.__file__],
            input=pickle.dumps((self.task, self.sizes, self.seed, self.arguments)),
            capture_output=True,
            env=environment,
            check=False,
        )
        if done.returncode:
            trace = done.stderr.decode(errors="replace").strip() or f"exit status {done.returncode}"
            log.debug("ReasoningGym: drawing %s failed:\n%s", self.task, trace)
            raise UserError(f"ReasoningGym: {self.task} with {self.arguments} failed: {trace.splitlines()[-1]}")
        entries: dict[Split, list[Entry]]
        entries, problem = pickle.loads(done.stdout)
        if problem is not None:
            raise UserError(f"ReasoningGym: {problem}")
        return entries

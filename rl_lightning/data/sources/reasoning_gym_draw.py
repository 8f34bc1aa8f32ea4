"""Drawing problems from reasoning-gym. Runs as a script, so it imports nothing but the standard library and that."""

from __future__ import annotations

import dataclasses
import difflib
import pickle
import random
import sys
from collections.abc import Iterator, Mapping

#: A problem as reasoning-gym made it: `question`, `answer`, and what the task's own scoring reads.
Entry = dict[str, object]

_CHUNK = 1000
_GIVE_UP = 1000


class DrawError(Exception):
    """The task cannot be drawn as asked; the message says why."""


def draw_splits(
    task: str, sizes: Mapping[str, int], seed: int, arguments: Mapping[str, object]
) -> dict[str, list[Entry]]:
    """Draw the entries of each split, no question twice.

    Args:
        task: name of the task.
        sizes: entries wanted of each split, by its name: train, val and test.
        seed: of the draws.
        arguments: options of the task.

    Returns:
        The entries by split.

    Raises:
        DrawError: if there is no such task or option, or there are not enough different questions.
    """
    _check(task, arguments)
    taken: set[str] = set()
    splits = {}
    # Held-out splits choose first, so that they do not change with the size of the training split.
    for split in ("test", "val", "train"):
        entries: list[Entry] = []
        stale = 0
        # Below 2**32 with room to count on, for tasks that seed numpy.
        start = random.Random(f"{seed}/{split}").randrange(2**30)
        # A task may draw from the global generator, as list_functions does.
        random.seed(start)
        stream = _stream(task, arguments, start)
        while len(entries) < sizes[split]:
            entry = next(stream)
            question = str(entry["question"])
            stale = stale + 1 if question in taken else 0
            if not stale:
                taken.add(question)
                entries.append(entry)
            elif stale >= _GIVE_UP:
                others = f" beside the {len(taken) - len(entries)} held out" if len(taken) > len(entries) else ""
                raise DrawError(
                    f"{task} gave only {len(entries)} different {split} questions of {sizes[split]} wanted{others}; "
                    "ask for fewer, or widen the task by `arguments`"
                )
        splits[split] = entries
    return splits


def _check(task: str, arguments: Mapping[str, object]) -> None:
    """Check that there is a task, and that it takes some options."""
    from reasoning_gym.factory import DATASETS

    if task == "composite":
        raise DrawError("composite mixes other tasks and cannot be used here; name one task")
    if task not in DATASETS:
        close = difflib.get_close_matches(task, sorted(DATASETS), cutoff=0.4)
        hint = f"; did you mean {' or '.join(close)}?" if close else f"; there are {', '.join(sorted(DATASETS))}"
        raise DrawError(f"reasoning-gym has no task {task!r}{hint}")
    config_class = DATASETS[task][1]
    known = {field.name for field in dataclasses.fields(config_class)} - {"seed", "size"}
    unknown = sorted(set(arguments) - known)
    if unknown:
        raise DrawError(f"{task} has no option {', '.join(unknown)}; its options are {', '.join(sorted(known))}")
    try:
        config_class(**arguments, seed=0, size=1).validate()
    except (AssertionError, TypeError, ValueError) as error:
        raise DrawError(f"{task} with {arguments}: {error or type(error).__name__}") from error


def _stream(task: str, arguments: Mapping[str, object], start: int) -> Iterator[Entry]:
    """Yield entries for ever.

    Entry i of a dataset with seed s is, for almost all tasks, entry 0 of one with seed s + i. So datasets of adjacent
    seeds are the same but for one entry: the next chunk's seed is a whole chunk further, and splits start far apart.
    """
    import reasoning_gym

    while True:
        dataset = reasoning_gym.create_dataset(task, **arguments, seed=start, size=_CHUNK)
        yield from (dataset[index] for index in range(_CHUNK))
        start += _CHUNK


def main() -> None:
    """Read what to draw from the standard input and write the entries, or the problem, to the standard output."""
    task, sizes, seed, arguments = pickle.load(sys.stdin.buffer)
    out = sys.stdout.buffer
    # Whatever a library prints must not get between.
    sys.stdout = sys.stderr
    entries, problem = None, None
    try:
        entries = draw_splits(task, sizes, seed, arguments)
    except DrawError as error:
        problem = str(error)
    pickle.dump((entries, problem), out)


if __name__ == "__main__":
    main()

"""The work of both sides of a benchmark: sizes, forced lengths, and files of prompts and rows."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_WORDS = [
    "the",
    "a",
    "of",
    "tree",
    "house",
    "runs",
    "quick",
    "blue",
    "seven",
    "water",
    "stone",
    "light",
    "cat",
    "dog",
    "sings",
    "over",
]

#: Longest row of the offline benchmarks in tokens; TRL packs rows into this length.
MAX_ROW = 256


@dataclass
class Work:
    """The work of one benchmark.

    Args:
        kind: of data: `prompts`, `sums`, `demonstrations` or `pairs`.
        model: directory, or name on the hub.
        directory: of the data, and for files of each side.
        steps: number of steps that there are data for.
        threads: number of torch's threads.
        prompts: prompts per step.
        group: responses per prompt.
        new_tokens: cap on the length of a response.
        prompt_tokens: approximate length of a prompt.
        batch: demonstrations or pairs per step.
        packing: whether TRL packs rows.
        algorithm: the YAML in configs/ that this library trains with.
        reward: name of the reward function.
        pass_tokens: most tokens in one forward pass of this library; no limit if None. TRL passes all rows of a step at once.
    """

    kind: str
    model: str = ""
    directory: str = ""
    steps: int = 1
    threads: int = 2
    prompts: int = 0
    group: int = 1
    new_tokens: int = 0
    prompt_tokens: int = 64
    batch: int = 0
    packing: bool = False
    algorithm: str = ""
    reward: str = "examples.bench.rewards.last_number"
    pass_tokens: int | None = None

    @property
    def ours(self) -> Path:
        """The file of rows for this library."""
        return Path(self.directory) / "rows.jsonl"

    @property
    def theirs(self) -> Path:
        """The file of rows in the order in which this library reads them, for a peer that does not shuffle."""
        return Path(self.directory) / "ordered.jsonl"

    def rows(self) -> list[dict[str, str]]:
        """Return the rows in the order in which they are worked on."""
        return [json.loads(line) for line in self.theirs.read_text().splitlines()]

    def prepare(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write the files of rows, as many as the steps need."""
        from rl_lightning.data.steps import permutation

        count = self.steps * (self.batch or self.prompts)
        if self.kind == "sums":
            rows = _sums(count)
        else:
            draw = random.Random(0)
            writer = Writer(tokenizer, draw)
            make = {"prompts": self._problem, "demonstrations": _demonstration, "pairs": _pair}[self.kind]
            rows = [make(writer, draw) for _ in range(count)]
        self.ours.write_text(_lines(rows))
        # The key of the random order in the first pass over the data, with seed 0.
        self.theirs.write_text(_lines([rows[place] for place in permutation(count, 0, 0).tolist()]))

    def _problem(self, writer: Writer, draw: random.Random) -> dict[str, str]:
        numbers = [draw.randint(1, 50) for _ in range(draw.randint(2, 4))]
        problem = f" State the final answer to this arithmetic problem: {' + '.join(map(str, numbers))} ="
        return {
            "prompt": writer.text(self.prompt_tokens - writer.count(problem)) + problem,
            "answer": str(sum(numbers)),
        }


class Writer:
    """Writes random text of a given number of tokens.

    Args:
        tokenizer: counts the tokens.
        draw: random numbers that choose the words.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, draw: random.Random) -> None:
        self._tokenizer = tokenizer
        self._draw = draw
        self._costs = {word: self.count(f" {word}") for word in _WORDS}

    def count(self, text: str) -> int:
        """Return the number of tokens of a text."""
        return len(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def text(self, tokens: int) -> str:
        """Return a text of at most `tokens` tokens, and of at least one word."""
        words, used = "", 0
        while True:
            word = self._draw.choice(_WORDS)
            used += self._costs[word]
            if words and used > tokens:
                return words
            words += f" {word}"


def _demonstration(writer: Writer, draw: random.Random) -> dict[str, str]:
    length = _log_normal(draw, 90, 0.7, 24, MAX_ROW)
    prompt = f"Question:{writer.text(12)}?"
    return {"prompt": prompt, "completion": writer.text(length - writer.count(prompt) - 1)}  # one token for its end


def _pair(writer: Writer, draw: random.Random) -> dict[str, str]:
    prompt, chosen, rejected = (writer.text(_log_normal(draw, 50, 0.7, 3, 100)) for _ in range(3))
    return {"prompt": f"Question:{prompt}?", "chosen": chosen, "rejected": rejected}


def _sums(count: int) -> list[dict[str, str]]:
    from rl_lightning.data import ChainSum

    return [{"prompt": str(one.prompt), "answer": str(one.answer)} for one in ChainSum(train_size=count).load("train")]


def _lines(rows: list[dict[str, Any]]) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def _log_normal(draw: random.Random, median: float, sigma: float, low: int, high: int) -> int:
    return max(low, min(high, int(median * math.exp(draw.gauss(0, sigma)))))


def forced_lengths(count: int, new_tokens: int, call: int) -> list[int]:
    """Return the length of each response in a given call, in tokens, the end-of-sequence token included.

    Lengths are log-normal with median 0.4 of the cap and σ = 0.8; about one in eight reaches the cap and is cut off.
    """
    draw = random.Random(call)
    return [_log_normal(draw, 0.4 * new_tokens, 0.8, min(4, new_tokens), new_tokens) for _ in range(count)]


def lengths_of_calls(count: int, new_tokens: int) -> Iterator[list[int]]:
    """Yield the lengths of the first call, the second, and so on."""
    call = 0
    while True:
        call += 1
        yield forced_lengths(count, new_tokens, call)

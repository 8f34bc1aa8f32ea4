"""What both sides of a benchmark have to do: shapes, forced lengths, and files of prompts and rows."""

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

#: Rows of the offline benchmarks have at most this many tokens, which is what TRL packs them into.
MAX_ROW = 256


@dataclass
class Work:
    """One benchmark's work.

    Args:
        kind: what the data are: `prompts`, `sums`, `demonstrations` or `pairs`.
        model: directory, or name on the hub.
        directory: where the data are, and where each side may write.
        steps: that there are data for.
        threads: of torch.
        prompts, group, new_tokens: responses to each of how many prompts, of up to how many tokens, in a step.
        prompt_tokens: of each prompt, nearly.
        batch: demonstrations or pairs in a step.
        packing: whether TRL packs rows.
        algorithm: the file under configs/ that this library trains with.
        reward: what scores responses.
        pass_tokens: of one forward pass of this library, at most; no bound if None. TRL passes a step's rows at once.
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
        """The rows, as this library gets them."""
        return Path(self.directory) / "rows.jsonl"

    @property
    def theirs(self) -> Path:
        """The rows in the order in which this library goes through them, for a peer that does not shuffle."""
        return Path(self.directory) / "ordered.jsonl"

    def rows(self) -> list[dict[str, str]]:
        """Return the rows in the order in which they are worked on."""
        return [json.loads(line) for line in self.theirs.read_text().splitlines()]

    def prepare(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write the rows, as many as the steps need."""
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
        # The key of the first pass over the data under seed 0.
        self.theirs.write_text(_lines([rows[place] for place in permutation(count, 0, 0).tolist()]))

    def _problem(self, writer: Writer, draw: random.Random) -> dict[str, str]:
        numbers = [draw.randint(1, 50) for _ in range(draw.randint(2, 4))]
        problem = f" State the final answer to this arithmetic problem: {' + '.join(map(str, numbers))} ="
        return {
            "prompt": writer.text(self.prompt_tokens - writer.count(problem)) + problem,
            "answer": str(sum(numbers)),
        }


class Writer:
    """Writes text without meaning, of a number of tokens.

    Args:
        tokenizer: that counts them.
        draw: where words come from.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, draw: random.Random) -> None:
        self._tokenizer = tokenizer
        self._draw = draw
        self._costs = {word: self.count(f" {word}") for word in _WORDS}

    def count(self, text: str) -> int:
        """Return the number of tokens of a text."""
        return len(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def text(self, tokens: int) -> str:
        """Return at least one word, and words until the next would be one token too many."""
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
    return {"prompt": prompt, "completion": writer.text(length - writer.count(prompt) - 1)}  # one for its end


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
    """Return how many tokens each response gets in the given call, the end-of-sequence token included.

    Log-normal with median 0.4 of the cap and σ = 0.8: about one in eight is cut off by it, and has no end.
    """
    draw = random.Random(call)
    return [_log_normal(draw, 0.4 * new_tokens, 0.8, min(4, new_tokens), new_tokens) for _ in range(count)]


def lengths_of_calls(count: int, new_tokens: int) -> Iterator[list[int]]:
    """Yield the lengths of the first call, the second, and so on."""
    call = 0
    while True:
        call += 1
        yield forced_lengths(count, new_tokens, call)

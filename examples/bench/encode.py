"""Time and memory of reading and encoding written responses: `python -m examples.bench.encode POLICY [--rows 200000] [--chat]`.

Run it in two checkouts, one after the other, to compare them. The peak is that of the whole process, imports included.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import tempfile
import time
from pathlib import Path

from rl_lightning.data.offline.written import WrittenReader
from rl_lightning.data.prompts import encode_prompts, text_format
from rl_lightning.data.sources import FileExamples
from rl_lightning.models import PolicyFiles

#: Bytes of a prompt and of a response.
SIZES = {"prompt": 250, "response": 750}
WORDS = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "was",
    "for",
    "that",
    "on",
    "with",
    "as",
    "it",
    "be",
    "by",
    "this",
    "from",
    "at",
    "or",
    "are",
    "an",
    "which",
    "have",
    "not",
    "one",
    "all",
    "they",
    "were",
]


def peak_gb() -> float:
    """Return the most memory that this process has held, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2


def cpu_s() -> float:
    """Return the seconds that all cores have worked for this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def write(path: Path, rows: int) -> None:
    """Write rows of random words."""
    draw = random.Random(0)
    with path.open("w") as file:
        for _ in range(rows):
            row = {name: " ".join(draw.choices(WORDS, k=size // 4)) for name, size in SIZES.items()}
            file.write(json.dumps(row) + "\n")


def main() -> None:
    """Write a file, read it, encode it, and say what that took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("policy", help="whose tokenizer encodes")
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--chat", action="store_true", help="apply its chat template")
    given = parser.parse_args()
    tokenizer = PolicyFiles(given.policy).tokenizer
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        write(path, given.rows)
        started, worked = time.perf_counter(), cpu_s()
        source = FileExamples(train=str(path), answer_column=None, response_column="response")
        examples = source.load("train")
        read = time.perf_counter() - started
        print(f"read: {read:.1f} s, peak {peak_gb():.2f} GB")
        reader = WrittenReader(text_format(tokenizer, given.chat))
        encode_prompts(
            examples,
            tokenizer,
            max_prompt_length=None,
            context_length=None,
            max_new_tokens=0,
            chat_template=given.chat,
            add_written=reader,
        )
        whole = time.perf_counter() - started
        print(
            f"encoded: {whole - read:.1f} s, together {whole:.1f} s ({cpu_s() - worked:.1f} s of CPU), peak {peak_gb():.2f} GB"
        )


if __name__ == "__main__":
    main()

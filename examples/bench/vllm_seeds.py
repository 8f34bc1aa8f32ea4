"""What it costs vLLM to draw each response from a seed of its own, as `VLLMGenerator` asks, and not all from one stream.

Usage: python -m examples.bench vllm_seeds --model directory --peer-python PYTHON

One engine samples the same prompts with seeds and without, in turns. The line has the seconds with seeds over those without, the median of
the pairs, and the smallest and largest.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time


def main() -> None:
    """Measure, and print the line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="directory")
    parser.add_argument("--rows", type=int, default=64, help="responses at a time (%(default)s)")
    parser.add_argument("--tokens", type=int, default=32, help="of a response (%(default)s)")
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "WARNING"}
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    from vllm import LLM, SamplingParams

    engine = LLM(options.model, dtype="float32", max_num_seqs=options.rows, kv_cache_memory_bytes=1 << 29)

    def seconds(seeded: bool) -> float:
        prompts = [{"prompt_token_ids": [3 + row % 5, 4, 5, 6]} for row in range(options.rows)]
        asked = [
            SamplingParams(
                temperature=1.0, max_tokens=options.tokens, ignore_eos=True, logprobs=0, seed=row if seeded else None
            )
            for row in range(options.rows)
        ]
        started = time.perf_counter()
        engine.generate(prompts, asked, use_tqdm=False)
        return time.perf_counter() - started

    seconds(True), seconds(False)
    pairs = [(seconds(False), seconds(True)) for _ in range(options.pairs)]
    ratios = [seeded / free for free, seeded in pairs]
    free, seeded = map(statistics.median, zip(*pairs, strict=True))
    line = {
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "own_s": free,
        "peer_s": seeded,
    }
    print(f"{options.rows} responses of {options.tokens} tokens: own without seeds, peer with a seed each")
    print(json.dumps({name: round(value, 3) for name, value in line.items()}))


if __name__ == "__main__":
    main()

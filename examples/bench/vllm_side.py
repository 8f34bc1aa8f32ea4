"""vLLM's side of the sampling benchmark. It imports light parts of the benchmark alone, because vLLM may have its own interpreter."""

from __future__ import annotations

import os

from examples.bench.generate import batches
from examples.bench.turns import turns
from examples.bench.work import Work, lengths_of_calls

#: Bytes of the key-value cache; all rows of the benchmark fit.
_CACHE_BYTES = 1 << 29


def generate(work: Work) -> None:
    """Sample with vLLM in this process, one call per step, with the log-probabilities of the drawn tokens."""
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "WARNING"}
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    from vllm import LLM, SamplingParams

    rows = work.prompts * work.group
    engine = LLM(work.model, dtype="float32", max_num_seqs=rows, kv_cache_memory_bytes=_CACHE_BYTES)
    tokenizer = engine.get_tokenizer()
    for batch, lengths in zip(batches(work), lengths_of_calls(rows, work.new_tokens), strict=False):
        ids = [tokenizer(text)["input_ids"] for text in batch]
        prompts = [{"prompt_token_ids": prompt} for prompt in ids for _ in range(work.group)]
        options = [
            SamplingParams(temperature=1.0, max_tokens=length, ignore_eos=True, logprobs=0) for length in lengths
        ]
        turns().wait()
        for output in engine.generate(prompts, options, use_tqdm=False):
            turns().tokens += len(output.outputs[0].token_ids)
    turns().wait()

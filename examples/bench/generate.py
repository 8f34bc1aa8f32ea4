"""`NativeGenerator` against transformers' `generate`: the same prompts and the same lengths of responses."""

from __future__ import annotations

import itertools

from examples.bench.turns import turns
from examples.bench.work import Work, lengths_of_calls


def ours(work: Work) -> None:
    """Sample with this library, one call per step."""
    from examples.bench.forced_native import ForcedLengths
    from rl_lightning.data.encoded import EncodedPrompt
    from rl_lightning.data.sources.base import Example
    from rl_lightning.generation import Request, Sampling
    from rl_lightning.models import PolicyFiles, roofline

    files = PolicyFiles(work.model)
    model, generator = files.load(trainable=False), ForcedLengths()
    passes = roofline.Work.of(model)
    rows = work.prompts * work.group
    for batch in batches(work):
        prompts = [EncodedPrompt(Example(text), files.tokenizer(text)["input_ids"], text) for text in batch]
        turns().wait()
        responses = generator.generate(
            model,
            Request(
                prompts,
                group_size=work.group,
                streams=[(0, row) for row in range(rows)],
                sampling=Sampling(max_new_tokens=work.new_tokens),
                stop_ids=files.stop_ids,
                stop_strings=None,
                pad_id=files.tokenizer.pad_token_id,
            ),
        )
        turns().tokens += int(responses.response_mask.sum())
        if passes is not None:
            found = generator.metrics()
            turns().needs = passes.decoding(*(found[f"work/{name}"] for name in ("steps", "rows", "seen")))
    turns().wait()


def theirs(work: Work) -> None:
    """Sample with transformers, one call per step."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from examples.bench.forced import ForceEnds

    model = AutoModelForCausalLM.from_pretrained(work.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(work.model, padding_side="left")
    ends = model.generation_config.eos_token_id
    stops = ends if isinstance(ends, list) else [ends]
    rows = work.prompts * work.group
    for batch, lengths in zip(batches(work), lengths_of_calls(rows, work.new_tokens), strict=False):
        inputs = tokenizer([text for text in batch for _ in range(work.group)], return_tensors="pt", padding=True)
        turns().wait()
        ids = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=work.new_tokens,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            pad_token_id=tokenizer.pad_token_id,
            logits_processor=[ForceEnds(lengths, work.new_tokens, stops)],
        )
        new = ids[:, inputs["input_ids"].shape[1] :]
        ended = torch.isin(new, torch.tensor(stops)).int()
        turns().tokens += int((ended.cumsum(1) - ended == 0).sum())
    turns().wait()


def batches(work: Work) -> list[list[str]]:
    """Yield the token ids of the prompts of one step after another."""
    texts = iter(row["prompt"] for row in work.rows())
    return [list(itertools.islice(texts, work.prompts)) for _ in range(work.steps)]

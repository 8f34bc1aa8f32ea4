"""Measurements on one GPU, with policies of random weights: nothing is downloaded."""

from __future__ import annotations

import gc
import importlib.util
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from rl_lightning.functional import logprobs_from_logits
from rl_lightning.generation import NativeGenerator, Request, Sampling, VLLMGenerator
from rl_lightning.generation.loop import Decoding
from rl_lightning.generation.room import room_for
from rl_lightning.models import LoadOptions, LoraOptions, PolicyFiles, add_adapter, read_responses, response_logits
from rl_lightning.models.head import logits_at_once
from rl_lightning.models.packed_attention import enable_packing
from rl_lightning.models.quantized import Bits
from rl_lightning.models.roofline import Tokens, Work, measured_limits
from rl_lightning.types import Rows

DEVICE = torch.device("cuda")

#: Memory of vLLM's keys and values.
_CACHE_GIB = 2.0

#: Rows of a table, each name → value.
Found = list[dict[str, Any]]


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Args:
        hidden, layers, heads, shared, vocabulary: of the policy; by default those of Qwen2.5-0.5B.
        rows: responses that are sampled side by side, one measurement each.
        prompt, response: tokens.
        groups, answers: prompts, and responses to each, of the packed row that is trained on.
    """

    hidden: int = 896
    layers: int = 24
    heads: int = 14
    shared: int = 2
    vocabulary: int = 151936
    rows: Sequence[int] = (8, 64, 256)
    prompt: int = 256
    response: int = 256
    groups: int = 8
    answers: int = 8

    def policy(self, dtype: torch.dtype = torch.bfloat16) -> PreTrainedModel:
        """Return a policy with random weights."""
        torch.manual_seed(0)
        config = Qwen2Config(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.hidden * 11 // 2,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.shared,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
            dtype=dtype,
        )
        model = Qwen2ForCausalLM(config).to(dtype).to(DEVICE).eval()
        enable_packing(model)
        return model


class _Prompt(NamedTuple):
    input_ids: list[int]
    example: object = None


class StepByStep(NativeGenerator):
    """Samples as on a CPU: the host looks after every token."""

    def _decoding(self, device: torch.device) -> Callable[..., Decoding]:
        return Decoding


#: The loops that are compared.
LOOPS: dict[str, Callable[[], NativeGenerator]] = {
    "step by step": StepByStep,
    "chunks": NativeGenerator,
    "graphs": lambda: NativeGenerator(graphs=True),
}


@contextmanager
def counted_waits() -> Iterator[list[int]]:
    """Yield a list that is given how often the host waited for the GPU inside, as torch's own debug mode sees it."""
    found: list[int] = []
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode(before)
            found.append(sum("synchroniz" in str(one.message) for one in said))


def constants(plan: Plan) -> Found:
    """Return what follows from the device: chunks of logits, and room in the cache."""
    return [{"logits at once": logits_at_once(DEVICE), "tokens in the cache": room_for(plan.policy())}]


def limits(plan: Plan) -> Found:
    """Return the measured FLOP/s in bfloat16, and bytes a second."""
    found = measured_limits(DEVICE, torch.bfloat16)
    return [{"flops": found.flops, "bandwidth": found.bandwidth}]


def sampling(plan: Plan, loop: str) -> Found:
    """Return, by rows, tokens a second, waits a step, the least FLOPs and bytes that it takes, and a digest of each response.

    Args:
        plan: what is sampled.
        loop: a key of `LOOPS`.
    """
    model = plan.policy()
    return [_sampling(plan, model, loop, rows) for rows in plan.rows]


def mixed(plan: Plan, loop: str) -> Found:
    """Return the same of float32 weights, which are trained, under Lightning's `bf16-mixed`."""
    model = plan.policy(torch.float32)
    with MixedPrecision("bf16-mixed", DEVICE.type).forward_context():
        return [_sampling(plan, model, loop, rows) for rows in plan.rows]


def _sampling(plan: Plan, model: PreTrainedModel, loop: str, rows: int) -> dict[str, object]:
    generator = LOOPS[loop]()
    _sample(plan, model, generator, rows, 20)  # kernels are loaded
    generator.metrics()
    with counted_waits() as waits:
        started = time.perf_counter()
        said = _sample(plan, model, generator, rows, plan.response)
        torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    work = generator.metrics()
    narrow = torch.get_autocast_dtype(DEVICE.type) if torch.is_autocast_enabled(DEVICE.type) else None
    counted = Work.of(model, computed=narrow)
    assert counted is not None
    return {
        "rows": rows,
        "context": plan.prompt + plan.response // 2,
        "tokens/s": round(rows * plan.response / seconds),
        "seconds": round(seconds, 3),
        "waits a step": round(waits[0] / plan.response, 3),
        "least": counted.decoding(*(work[f"work/{key}"] for key in ("steps", "rows", "seen"))),
        "digests": [zlib.crc32(repr(ids).encode()) for ids in said],
    }


def _sample(plan: Plan, model: PreTrainedModel, generator: NativeGenerator, rows: int, tokens: int) -> list[list[int]]:
    ids: list[list[int]] = generator.generate(model, _asked(plan, rows, tokens)).response_ids.tolist()
    return ids


def _asked(plan: Plan, rows: int, tokens: int) -> Request:
    numbers = torch.Generator().manual_seed(rows)
    prompts = torch.randint(plan.vocabulary, (max(1, rows // 8), plan.prompt), generator=numbers).tolist()
    group = rows // len(prompts)
    streams = [(0, number) for number in range(len(prompts) * group)]
    return Request([_Prompt(ids) for ids in prompts], group, streams, Sampling(tokens), frozenset(), None, 0)


def training(plan: Plan) -> Found:
    """Return tokens a second of a packed forward and backward pass, the least FLOPs that it takes, waits, and the peak of memory."""
    return [_training(plan, plan.policy().train())]


def _training(plan: Plan, model: PreTrainedModel) -> dict[str, object]:
    batch = packed_rows(plan)
    _pass(model, batch)
    torch.cuda.reset_peak_memory_stats()
    with counted_waits() as waits:
        started = time.perf_counter()
        _pass(model, batch)
        torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    tokens = Tokens()
    tokens.add(batch)
    return {
        "tokens": round(tokens.read),
        "tokens/s": round(tokens.read / seconds),
        "seconds": round(seconds, 3),
        "least": (Work.of(model).training(tokens), 0),  # type: ignore[union-attr]
        "waits": waits[0] - 1,  # the last one is ours
        "peak GiB": round(torch.cuda.max_memory_allocated() / 2**30, 2),
    }


def quantised(plan: Plan, bits: Bits) -> Found:
    """Return what a policy with quantised weights and an adapter takes and does: memory, speed, and whether two passes agree to the bit."""
    with tempfile.TemporaryDirectory() as directory:
        plan.policy().save_pretrained(directory)
        gc.collect()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        files = PolicyFiles(directory, LoadOptions(dtype="bfloat16", quantize=bits))
        model, missing = files._read_weights(AutoModelForCausalLM)
    assert not missing
    enable_packing(model)
    add_adapter(model, LoraOptions())
    model.to(DEVICE)
    held = torch.cuda.memory_allocated() - before
    batch = packed_rows(plan)
    with torch.no_grad():
        scored = read_responses(model, batch).logprobs
    ratio = (read_responses(model, batch).logprobs.detach() - scored).exp()
    sampled = _sampling(plan, model.eval(), "chunks", plan.rows[0])
    return [
        {
            "weights and adapter GiB": round(held / 2**30, 2),
            "first ratio is 1": bool((ratio == 1).all()),
            "sampling, tokens/s": sampled["tokens/s"],
            **{f"training, {name}": value for name, value in _training(plan, model.train()).items() if name != "least"},
        }
    ]


def vllm(plan: Plan, way: str) -> Found:
    """Return how long an engine of vLLM beside the policy takes to get new weights, how fast it samples, and how far its log-probabilities
    are from the policy's: far, if weights did not arrive.

    Args:
        plan: what is sampled.
        way: `in memory` or `files`.
    """
    if importlib.util.find_spec("vllm") is None:
        return [{"left out": "vLLM is not installed: pip install 'rl_lightning[vllm]'"}]
    with tempfile.TemporaryDirectory() as directory:
        plan.policy().save_pretrained(directory)
        files = PolicyFiles(directory, LoadOptions(dtype="bfloat16"))
        model, _ = files._read_weights(AutoModelForCausalLM)
        model.to(DEVICE).eval()
        generator = VLLMGenerator(kv_cache_gib=_CACHE_GIB, directory=None if way == "in memory" else directory)
        generator.update(model, files, 0)
        generator.metrics()  # the engine's start does not count
        rows = [_with_new_weights(plan, generator, model, files, version) for version in (1, 2)]
        shared = generator._receiver is not None
        generator.close()
    return [{"in memory": shared, **row} for row in rows]


def _with_new_weights(
    plan: Plan, generator: VLLMGenerator, model: PreTrainedModel, files: PolicyFiles, version: int
) -> dict[str, object]:
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * weight.float().std().nan_to_num() * torch.randn_like(weight))
    generator.update(model, files, version)
    asked = _asked(plan, plan.rows[0], plan.response)
    started = time.perf_counter()
    said = generator.generate(model, asked)
    seconds = time.perf_counter() - started
    with torch.no_grad():
        ids, mask = (
            torch.cat(pair, 1).to(DEVICE)
            for pair in ((said.prompt_ids, said.response_ids), (said.prompt_mask, said.response_mask))
        )
        logits = response_logits(model, ids, mask, said.response_ids.shape[1])
        own = logprobs_from_logits(logits, said.response_ids.to(DEVICE), 1.0).cpu()
    gaps = (said.logprobs - own)[said.response_mask].abs()
    return {
        "update, s": round(generator.metrics().get("time/update_s", 0.0), 3),
        "rows": plan.rows[0],
        "tokens/s": round(int(said.response_mask.sum()) / seconds),
        "mean gap, nats": round(float(gaps.mean()), 4),
        "largest gap, nats": round(float(gaps.max()), 3),
    }


def packed_rows(plan: Plan) -> Rows:
    """Return random answers of random lengths to random prompts, on the device."""
    numbers = torch.Generator().manual_seed(0)
    count = plan.groups * plan.answers
    ids = torch.randint(plan.vocabulary, (plan.groups, plan.prompt), generator=numbers).repeat_interleave(
        plan.answers, 0
    )
    answers = torch.randint(plan.vocabulary, (count, plan.response), generator=numbers)
    lengths = torch.randint(1, plan.response + 1, (count,), generator=numbers)
    mask = torch.arange(plan.response) < lengths[:, None]
    whole = torch.cat([torch.ones(count, plan.prompt, dtype=torch.bool), mask], 1)
    groups = torch.arange(plan.groups).repeat_interleave(plan.answers)
    return Rows(torch.cat([ids, answers], 1), whole, mask, groups, 1.0).to(DEVICE)


def _pass(model: PreTrainedModel, batch: Rows) -> None:
    loss: Tensor = -read_responses(model, batch).logprobs.sum()
    loss.backward()
    model.zero_grad()

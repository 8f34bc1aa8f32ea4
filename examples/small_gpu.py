"""What policies of 0.5 to 7 billion parameters need on one GPU of 16 GB, with each option that saves memory; computed, not measured.

Usage: python -m examples.small_gpu          the tables of docs/how-to/small-gpu.md
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from examples.accounting import Plan, Shape
from examples.scaling import SHAPES, gigabytes, table

#: Of https://huggingface.co/Qwen/Qwen2.5-0.5B and its larger siblings, `config.json`.
SIZES = {
    "0.5 B": SHAPES["0.5 B"],
    "1.5 B": Shape(28, 1536, 8960, 12, 2, 128, 151936, tied=True, qkv_bias=True),
    "3 B": Shape(36, 2048, 11008, 16, 2, 128, 151936, tied=True, qkv_bias=True),
    "7 B": SHAPES["7 B"],
}
#: Bytes of a 16 GB device that are left after CUDA's context, libraries and fragmentation.
USABLE = 14.5e9
#: Bytes that such a device has in all.
MEMORY = 16e9
#: What is trained → settings of a plan.
WAYS: Mapping[str, Mapping[str, object]] = {
    "all weights": {},
    "all weights, 8-bit moments": {"moments": "8bit"},
    "LoRA": {"lora": 16},
    "LoRA, 8-bit weights": {"lora": 16, "quantize": "8bit"},
    "LoRA, 4-bit weights": {"lora": 16, "quantize": "4bit"},
}


def plan(size: str, way: str, algorithm: str = "GRPO") -> Plan:
    """Return a plan for 512 + 1,536 tokens, 16 responses sampled at a time, and activations recomputed.

    Args:
        size: a key of `SIZES`.
        way: a key of `WAYS`.
        algorithm: a key of `examples.accounting.MODELS`.
    """
    return replace(Plan(SIZES[size], algorithm, sampled=16, memory=MEMORY), **WAYS[way])


def fits(one: Plan) -> str:
    """Return how many tokens of a forward pass fit, or that none does."""
    rows = one.most_rows(int(USABLE))
    return f"{rows * (one.prompt + one.response) / 1000:,.0f} k" if rows else "**no**"


def needs_table() -> str:
    """Return what GRPO needs, in GB: between steps, and at most in each phase of a step."""
    rows = []
    for size in SIZES:
        for way in WAYS:
            one = plan(size, way)
            phases, kept = one.phases(), replace(one, checkpointing=False).phases()["pass"]
            held = sum(model.total for model in one.held())
            numbers = [held, phases["pass"], kept, phases["step"], phases["sampling"]]
            rows.append([size, way, *map(gigabytes, numbers), fits(one), fits(replace(one, offload=True))])
    header = [
        "policy",
        "trained",
        "between steps",
        "pass",
        "pass, activations kept",
        "step",
        "sampling",
        "fits in 16 GB",
        "with `offload`",
    ]
    return table(header, rows)


def algorithms_table() -> str:
    """Return how many tokens of a pass fit into 16 GB, by algorithm, where linear layers are in 4 bits."""
    rows = [
        [size, *(fits(plan(size, "LoRA, 4-bit weights", algorithm)) for algorithm in ("SFT", "DPO", "GRPO", "PPO"))]
        for size in SIZES
    ]
    return table(["policy", "SFT", "DPO", "GRPO, DAPO", "PPO"], rows)


if __name__ == "__main__":
    print(needs_table(), algorithms_table(), sep="\n\n")

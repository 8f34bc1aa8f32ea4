"""Memory per device and tokens per step, computed for 1, 8 and 64 GPUs; and the same formulas compared with measurements.

Usage: python -m examples.scaling                                       the tables of docs/inside/scaling.md
       python -m examples.scaling --measure embedded DIRECTORY ...      measure a pass, a step and sampling of a policy

Nothing is downloaded: the shapes of Qwen2.5 are in this file. Measuring works on Linux only, in separate processes.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from examples.accounting import MODELS, ONLINE, Plan, Shape, numbers

#: Of https://huggingface.co/Qwen/Qwen2.5-0.5B and its larger siblings, `config.json`.
SHAPES = {
    "0.5 B": Shape(24, 896, 4864, 14, 2, 64, 151936, tied=True, qkv_bias=True),
    "7 B": Shape(28, 3584, 18944, 28, 4, 128, 152064, qkv_bias=True),
    "32 B": Shape(64, 5120, 27648, 40, 8, 128, 152064, qkv_bias=True),
}
GPUS = (1, 8, 64)
#: Bytes of an 80 GB device that are left after CUDA's context, libraries, communication and fragmentation.
USABLE = 74e9
#: Bytes that such a device has in all.
MEMORY = 85e9
#: Data sheet of an NVIDIA H100 SXM: bfloat16 FLOP/s without sparsity, and bytes of memory per second.
PEAK_FLOPS, PEAK_BYTES = 989e12, 3.35e12
#: Responses in an optimizer step of the tables.
STEP = 512
LORA = 16


def gigabytes(size: float) -> str:
    """Return a number of bytes in GB, with three digits."""
    return f"{size / 1e9:,.0f}" if size >= 1e11 else f"{size / 1e9:.3g}"


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def ways(plan: Plan) -> dict[str, Plan]:
    """Return name → plan of the ways to train, in the order in which they are tried: DDP, FSDP2, then the same with LoRA."""
    # Sampling fewer responses at a time takes less memory and more time.
    turns = (64, 16, 4) if plan.algorithm in ONLINE else (plan.sampled,)
    full = {"DDP": plan, "FSDP2": replace(plan, sharded=True)} if plan.gpus > 1 else {"": plan}
    adapted = {f"LoRA {name}".strip(): replace(one, lora=LORA) for name, one in full.items()}
    return {
        name + (f" ({sampled} sampled at a time)" if sampled < plan.sampled else ""): replace(one, sampled=sampled)
        for name, one in (full | adapted).items()
        for sampled in turns
    }


def held_table() -> str:
    """Return the table of memory from step to step: weights, gradients and AdamW's moments of all models, in GB per GPU."""
    rows = []
    for size, shape in SHAPES.items():
        for name in MODELS:
            plan = Plan(shape, name)
            kinds = [
                plan, replace(plan, precision="bf16-true"), replace(plan, gpus=8, sharded=True),
                replace(plan, gpus=64, sharded=True), replace(plan, lora=LORA), replace(plan, gpus=8, sharded=True, lora=LORA),
            ]  # fmt: skip
            rows.append([size, name, *(gigabytes(sum(model.total for model in kind.held())) for kind in kinds)])
    header = [
        "size",
        "algorithm",
        "one GPU or DDP",
        "the same, bf16-true",
        "FSDP2, 8",
        "FSDP2, 64",
        "LoRA, DDP",
        "LoRA, FSDP2, 8",
    ]
    return table(header, rows)


def parts_table() -> str:
    """Return the table of GRPO's memory by phase, in GB per GPU."""
    rows = []
    for size, gpus, way in (
        ("0.5 B", 1, ""),
        ("0.5 B", 8, "DDP"),
        ("7 B", 8, "FSDP2"),
        ("7 B", 1, "LoRA"),
        ("32 B", 64, "FSDP2"),
    ):
        plan = ways(Plan(SHAPES[size], gpus=gpus, memory=MEMORY))[way]
        held = sum(model.total for model in plan.held())
        for phase, parts in (("pass", plan.passing()), ("step", plan.stepping()), ("sampling", plan.sampling())):
            text = ", ".join(f"{name} {gigabytes(value)}" for name, value in parts.items() if value)
            rows.append(
                [f"{size}, {gpus} {way}".strip(), phase, gigabytes(held), text, gigabytes(plan.phases()[phase])]
            )
    return table(["GRPO", "phase", "held", "beside it", "sum"], rows)


def cell(plan: Plan) -> str:
    """Return the first way that fits, its peak, and the tokens of a forward pass over all GPUs; or the smallest if none fits."""
    best: tuple[float, str] | None = None
    for name, one in ways(plan).items():
        rows = one.most_rows(int(USABLE))
        if rows:
            peak = replace(one, rows=rows).peak()
            tokens = rows * plan.gpus * (plan.prompt + plan.response)
            return f"{name + ': ' if name else ''}{gigabytes(peak)} GB, {tokens / 1000:,.0f} k tokens a pass"
        least = replace(one, rows=2 if plan.algorithm in ("DPO", "RewardModel") else 1).peak()
        best = min(best or (least, name), (least, name))
    assert best is not None
    return f"**no**: {gigabytes(best[0])} GB {best[1]}".strip()


def fitting_table(size: str) -> str:
    """Return the table of what fits, for one size of model."""
    rows = [[name, *(cell(Plan(SHAPES[size], name, gpus=gpus, memory=MEMORY)) for gpus in GPUS)] for name in MODELS]
    return table(["algorithm", *(f"{gpus} GPU{'s' if gpus > 1 else ''}" for gpus in GPUS)], rows)


def bounds(shape: Shape, gpus: int, algorithm: str = "GRPO") -> dict[str, float]:
    """Return phase → the least seconds of an optimizer step of `STEP` responses, at full use of the hardware.

    A token costs 2 FLOPs per parameter in a forward pass, twice that in a backward pass, and one more forward pass with
    checkpointing. The reference's scores are a forward pass. Sampling reads all weights, in bfloat16, and the key-value cache once
    per column.
    """
    plan = Plan(shape, algorithm, gpus=gpus)
    parameters = numbers(shape.sizes())
    tokens = STEP * (plan.prompt + plan.response)
    trained, frozen = MODELS[algorithm]
    forward = 2 * parameters * tokens / (gpus * PEAK_FLOPS)
    token = 2 * shape.layers * shape.kv_heads * shape.head_dim * 2
    rows = max(1, STEP // gpus)
    cached = rows * (plan.prompt + plan.response / 2) * token
    return {
        "sampling": plan.response * (2 * parameters * -(-rows // plan.sampled) + cached) / PEAK_BYTES,
        "scoring": forward * len(frozen),
        "training": 4 * forward * len(trained),
    }


def bounds_table() -> str:
    """Return the table of `bounds` for GRPO."""
    rows = []
    for size, shape in SHAPES.items():
        for gpus in GPUS:
            found = bounds(shape, gpus)
            rows.append([size, str(gpus), *(f"{seconds:.3g}" for seconds in found.values())])
    return table(["size", "GPUs", "sampling, s", "scoring by the reference, s", "training, s"], rows)


# --------------------------------------------------------------------------- measured


def resident() -> tuple[int, int]:
    """Return the resident bytes of this process: now, and the peak since `forget_peak`."""
    status = Path("/proc/self/status").read_text()
    now, most = (int(re.search(rf"{name}:\s+(\d+) kB", status)[1]) * 1024 for name in ("VmRSS", "VmHWM"))  # type: ignore[index]
    return now, most


def forget_peak() -> None:
    """Reset the kernel's record of this process's peak memory."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")


def weigh(policy: str, rows: int, prompt: int, response: int, checkpointing: bool) -> dict[str, Any]:
    """Return the memory of a pass, a step and sampling in float32 on this CPU, computed and measured, in bytes."""
    # Use the libraries once first: the memory that they take then is not the run's.
    exercise("embedded", 2, 8, 8, checkpointing)
    forget_peak()
    base = resident()[0]
    shape, held, peaks = exercise(policy, rows, prompt, response, checkpointing)
    plan = Plan(
        shape,
        "DAPO",
        precision="32-true",
        checkpointing=checkpointing,
        rows=rows,
        sampled=rows,
        prompt=prompt,
        response=response,
        blocks=True,
    )
    return {
        "parameters": numbers(shape.sizes()), "held": sum(model.total for model in plan.held()), "of the run card": held,
        "counted": plan.phases(), "weighed": {phase: peak - base for phase, peak in peaks.items()},
    }  # fmt: skip


def exercise(
    policy: str, rows: int, prompt: int, response: int, checkpointing: bool
) -> tuple[Shape, int, dict[str, int]]:
    """Train and sample a policy; return its shape, the run card's count of bytes, and phase → peak memory in bytes."""
    import torch

    from rl_lightning.algorithms import SFT
    from rl_lightning.data.encoded import EncodedPrompt
    from rl_lightning.data.sources.base import Example
    from rl_lightning.generation import NativeGenerator, Request, Sampling
    from rl_lightning.models import LoadOptions
    from rl_lightning.models.memory import held
    from rl_lightning.types import Microbatch

    torch.manual_seed(0)
    module = SFT(policy, load=LoadOptions(gradient_checkpointing=checkpointing))
    module.configure_model()
    shape = Shape.of(module.policy_files.config)
    ids = torch.randint(3, shape.vocabulary, (rows, prompt + response))
    ones = torch.ones(rows, prompt + response, dtype=torch.bool)
    ones[0, 0] = False  # padding, so that attention has a mask as in a run
    weights = torch.full((rows, response), 1 / rows / response)
    batch = Microbatch(ids, ones, ones[:, -response:], torch.arange(rows), 1.0, weights=weights)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-5, fused=True)
    peaks = {}
    for _ in range(2):  # the second with AdamW's moments in place
        optimizer.zero_grad()
        forget_peak()
        module.loss(batch).backward()
        peaks["pass"] = resident()[1]
        forget_peak()
        optimizer.step()
        peaks["step"] = resident()[1]
    forget_peak()
    module.policy.eval()
    NativeGenerator().generate(
        module.policy,
        Request(
            prompts=[EncodedPrompt(Example(""), row, "") for row in ids[:, :prompt].tolist()],
            group_size=1,
            streams=[(0, row) for row in range(rows)],
            sampling=Sampling(max_new_tokens=response),
            stop_ids=frozenset(),
            stop_strings=None,
            pad_id=0,
        ),
    )
    peaks["sampling"] = resident()[1]
    return shape, sum(model.total for model in held(module)), peaks


def measure(policy: str, rows: int, prompt: int, response: int) -> str:
    """Return the table of computed and measured memory, each line from its own process."""
    lines = []
    for checkpointing in (False, True):
        arguments = [policy, str(rows), str(prompt), str(response), str(int(checkpointing))]
        command = [sys.executable, "-m", "examples.scaling", "--weigh", *arguments]
        # Let glibc return freed blocks to the system at once, so that the peak is not one of its own caches.
        environment = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env={**_environment(), **environment}
        )
        if done.returncode:
            raise SystemExit(done.stderr[-3000:])
        found = json.loads(done.stdout.splitlines()[-1])
        assert found["held"] == found["of the run card"], found
        for phase, counted in found["counted"].items():
            weighed = found["weighed"][phase]
            numbers_ = [gigabytes(counted), gigabytes(weighed), f"{weighed / counted:.2f}"]
            lines.append([f"{found['parameters']:,}", "yes" if checkpointing else "no", phase, *numbers_])
    return table(["parameters", "checkpointing", "phase", "counted, GB", "weighed, GB", "weighed / counted"], lines)


def _environment() -> dict[str, str]:
    import os

    return dict(os.environ)


def main() -> None:
    """Print the tables, or the measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", nargs="+", metavar="POLICY")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--response", type=int, default=192)
    parser.add_argument("--weigh", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.weigh:
        policy, *sizes, checkpointing = options.weigh
        print(json.dumps(weigh(policy, *map(int, sizes), checkpointing=checkpointing == "1")))
    elif options.measure:
        for policy in options.measure:
            print(f"{policy}: {options.rows} rows of {options.prompt} + {options.response} tokens\n")
            print(measure(policy, options.rows, options.prompt, options.response), end="\n\n", flush=True)
    else:
        tables = [held_table(), parts_table(), *map(fitting_table, SHAPES), bounds_table()]
        print("\n\n".join(tables))


if __name__ == "__main__":
    main()

"""What sampling on a GPU should take, on paper: launches and bytes of a decoding step. `python -m examples.gpu.paper`

    host      launches × 6 µs                           the host gives the GPU its work, kernel by kernel
    device    launches × 1.3 µs + bytes / (3 TB/s)      the GPU does it: a short kernel takes about so long whatever it does

Kernel by kernel a step takes the longer of the two; from a CUDA graph it takes the second. Launches are those that
tests/simulated_gpu/test_decoding.py holds. Nothing here was measured on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

_LAUNCH_S, _KERNEL_S, _BYTES_PER_S = 6e-6, 1.3e-6, 3e12
_CONTEXT = 1024


@dataclass(frozen=True)
class Model:
    """A policy.

    Args:
        name: of it.
        billions: of parameters.
        layers: of it.
        cached: numbers a token in the key-value cache.
    """

    name: str
    billions: float
    layers: int
    cached: int


@dataclass(frozen=True)
class Loop:
    """A decoding loop.

    Args:
        name: of it.
        layer, beside: launches a layer, and beside the layers.
        cache: bytes a number in the cache that attention reads in a step, its cast included.
        graph: whether steps are replayed from a CUDA graph.
    """

    name: str
    layer: int
    beside: int
    cache: float
    graph: bool

    def tokens_per_s(self, model: Model, rows: int, context: int = _CONTEXT) -> float:
        """Return how many tokens a second `rows` responses get together, `context` tokens behind each."""
        launches = model.layers * self.layer + self.beside
        read = 2 * model.billions * 1e9 + rows * context * model.cached * self.cache
        device = launches * _KERNEL_S + read / _BYTES_PER_S
        return rows / (device if self.graph else max(device, launches * _LAUNCH_S))


MODELS = (
    Model("0.5B", 0.49, 24, 24 * 2 * 2 * 64),
    Model("1.5B", 1.54, 28, 28 * 2 * 2 * 128),
    Model("3B", 3.09, 36, 36 * 2 * 2 * 128),
    Model("7B", 7.6, 28, 28 * 2 * 4 * 128),
)
LOOPS = (
    Loop("before, bf16-mixed", 40, 72, 4 + 2 + 2, False),
    Loop("now, bf16-mixed", 25, 62, 2, False),
    Loop("now, bf16-true", 21, 62, 2, False),
    Loop("with graphs, bf16-mixed", 25, 62, 2, True),
)
ROWS = (32, 64, 256, 512)


#: Loops that `measure` runs with a policy in bfloat16 → the same on paper. Step by step, how long the host waits is not known.
_MEASURED = {"chunks": LOOPS[2], "graphs": Loop("with graphs, bf16-true", 21, 62, 2, True)}


def estimate(loop: str, rows: int, context: int) -> int | None:
    """Return how many tokens a second 0.5 billion parameters in bfloat16 should sample; None for a loop that is not estimated."""
    known = _MEASURED.get(loop)
    return None if known is None else round(known.tokens_per_s(MODELS[0], rows, context))


def table() -> str:
    """Return thousands of tokens a second, by policy, loop and rows, as Markdown."""
    lines = [
        "| policy | loop | " + " | ".join(f"{rows} rows" for rows in ROWS) + " |",
        "|---|---|" + "---|" * len(ROWS),
    ]
    for model in MODELS:
        for loop in LOOPS:
            found = " | ".join(f"{loop.tokens_per_s(model, rows) / 1000:.1f}" for rows in ROWS)
            lines.append(f"| {model.name} | {loop.name} | {found} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())

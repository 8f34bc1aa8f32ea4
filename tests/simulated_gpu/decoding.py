"""Sampling on the simulated device, in the loop of CPUs and in chunks."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from lightning.pytorch.plugins.precision import MixedPrecision

from rl_lightning.generation import NativeGenerator, Sampling
from rl_lightning.generation import steady as steady_module
from rl_lightning.generation.loop import Decoding
from rl_lightning.models import LoadOptions, PolicyFiles
from rl_lightning.stopping import StopStrings
from tests.simulated_gpu.counts import SEEN, phase
from tests.simulated_gpu.device import CudaTensor
from tests.support import request_for

PROMPTS = [[3, 4, 5, 6], [7, 8], [9, 3, 9, 3, 9, 10], [5]]
GROUP = 3
STREAMS = [(0, number) for number in range(len(PROMPTS) * GROUP)]


class StepByStep(NativeGenerator):
    """Samples on the device as on a CPU: the host looks after every token."""

    def _decoding(self, device: torch.device) -> Any:
        return Decoding


def model_of(policy: str, **options: Any) -> Any:
    """Return a policy on the simulated device, in evaluation mode."""
    files = PolicyFiles(policy, LoadOptions(**{"dtype": "float32"} | options))
    return files.load(trainable=options.get("dtype") != "bfloat16").eval().to("cuda"), files


def sampled(policy: str, kind: str, **settings: Any) -> dict[str, Any]:
    """Return what one generator says, and the waits of its steps.

    Args:
        policy: a directory.
        kind: `steps`, `chunks` or `graphs`.
        settings: of the request and the generator.
    """
    model, files = model_of(policy)
    room = {"max_rows": settings.pop("max_rows", None)}
    generator = StepByStep(**room) if kind == "steps" else NativeGenerator(**room, graphs=kind == "graphs")
    strings = settings.pop("stop", None)
    ended: dict[int, list[int]] = {}
    request = request_for(
        PROMPTS,
        STREAMS,
        settings.pop("sampling", Sampling(max_new_tokens=40)),
        stop_ids=frozenset(settings.pop("stop_ids", ())),
        stop_strings=None if strings is None else StopStrings(files.tokenizer, strings),
        caps=settings.pop("caps", None),
    )
    SEEN.clear()
    with phase("sampling"):
        said = generator.generate(model, request, finished=ended.__setitem__)
    assert not SEEN.refused, SEEN.refused
    rows = [ids[: sum(mask)] for ids, mask in zip(said.response_ids.tolist(), said.response_mask.tolist(), strict=True)]
    assert ended == dict(enumerate(rows))
    logprobs = torch.where(said.response_mask, said.logprobs, 0)
    return {"ids": rows, "logprobs": logprobs, "truncated": said.truncated.tolist(), "waits": SEEN.waits_in("sampling")}


class Chunks:
    """Counts what happens in each chunk of steps and at its end."""

    def __init__(self) -> None:
        self.inside: list[int] = []
        self.at_end: list[int] = []

    def __enter__(self) -> Chunks:
        self._kept = steady_module.SteadyDecoding._advance, steady_module.SteadyDecoding._look
        advance, look = self._kept

        def counted(function: Any, counts: list[int], name: str) -> Any:
            def call(*args: Any) -> Any:
                before = SEEN.waits_in(name)
                with phase(name):
                    result = function(*args)
                counts.append(SEEN.waits_in(name) - before)
                return result

            return call

        steady_module.SteadyDecoding._advance = counted(advance, self.inside, "chunk")  # type: ignore[method-assign]
        steady_module.SteadyDecoding._look = counted(look, self.at_end, "look")  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        steady_module.SteadyDecoding._advance, steady_module.SteadyDecoding._look = self._kept  # type: ignore[method-assign]


def chunk_waits(policy: str, graphs: bool) -> tuple[list[int], list[int]]:
    """Return how often the host waits in each chunk of steps, and at its end."""
    with Chunks() as chunks:
        sampled(policy, "graphs" if graphs else "chunks")
    return chunks.inside, chunks.at_end


def launches(policy: str, layers: int, precision: str, frozen: bool = False) -> dict[str, float]:
    """Return how many kernels a decoding step launches, a layer and beside the layers, and which attention kernels it takes.

    Args:
        policy: a directory.
        layers: of the policy.
        precision: `bf16-true`, `bf16-mixed` or `32-true`.
        frozen: its weights are not trained.
    """
    model, _ = model_of(policy, dtype="bfloat16" if precision == "bf16-true" else "float32")
    model.requires_grad_(not frozen)
    steps: list[int] = []
    for count in (layers, layers - 1):
        model.model.layers = model.model.layers[:count]
        model.config.num_hidden_layers = count
        request = request_for(PROMPTS, STREAMS, Sampling(max_new_tokens=17))
        # Lightning's, which keeps no copies of weights from one call to the next.
        mixed = MixedPrecision("bf16-mixed", "cuda").forward_context() if precision == "bf16-mixed" else nullcontext()
        with Chunks(), mixed:
            SEEN.clear()
            NativeGenerator().generate(model, request)
        steps.append(SEEN.launches_in("chunk"))
        kernels = {f"{kernel}: {why}" for (where, kernel, why), _ in SEEN.attention.items() if where == "chunk"}
    assert isinstance(model.model.embed_tokens.weight, torch.nn.Parameter) and isinstance(
        model.lm_head.weight, CudaTensor
    )
    return {
        "layer": (steps[0] - steps[1]) / 16,
        "beside": (steps[1] - (steps[0] - steps[1]) * (layers - 1)) / 16,
        "kernels": kernels,
    }

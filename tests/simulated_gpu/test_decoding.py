"""Decoding in chunks: the tokens of the loop that CPUs take, few waits and few launches."""

from functools import partial

import pytest
import torch

from rl_lightning.generation import NativeGenerator, Sampling
from rl_lightning.generation.steady import SteadyDecoding
from tests.simulated_gpu import decoding
from tests.support import request_for
from tests.tiny import tiny_model

#: Requests: what a response may end by, and how many are sampled side by side.
REQUESTS = {
    "all at once": {},
    "few rows, caps of their own": {"max_rows": 4, "caps": [1, 5, 40, 20]},
    "stop tokens": {"stop_ids": [4, 7], "max_rows": 5},
    "stop strings": {"stop": ["12", "3"]},
    "the most probable": {"sampling": Sampling(max_new_tokens=9, temperature=0.0)},
    "truncated": {"sampling": Sampling(max_new_tokens=9, top_k=4, top_p=0.9)},
}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(name, kind, marks=() if (name, kind) in {("stop strings", "graphs")} else pytest.mark.slow)
        for name in REQUESTS
        for kind in ("chunks", "graphs")
    ],
)
def test_chunks_say_what_single_steps_say(name, kind, gpu, tiny_policy):
    expected, found = (gpu(decoding.sampled, tiny_policy, which, **dict(REQUESTS[name])) for which in ("steps", kind))
    assert found["ids"] == expected["ids"]
    assert found["truncated"] == expected["truncated"]
    assert float((found["logprobs"] - expected["logprobs"]).abs().max()) < 1e-5
    assert found["waits"] * 10 < expected["waits"]


@pytest.mark.slow
@pytest.mark.parametrize("graphs", [False, True])
def test_the_host_waits_for_nothing_within_a_chunk(graphs, gpu, tiny_policy):
    inside, at_end = gpu(decoding.chunk_waits, tiny_policy, graphs)
    assert len(inside) >= 3 and set(inside) == {0}
    assert max(at_end) <= 1  # at most 2 were asked for


def test_a_graph_serves_many_chunks(monkeypatch):
    """Rows come in steps of 8; slots that nobody is in change nothing."""
    seen = []

    class Noting:
        def run(self, key, step, times):
            seen.append(key)
            for _ in range(times):
                step()

    monkeypatch.setattr(
        NativeGenerator,
        "_decoding",
        lambda self, device: partial(SteadyDecoding, replayed=Noting() if self.graphs else None),
    )
    numbers = torch.Generator().manual_seed(4)
    caps = (torch.randn(64, generator=numbers) * 0.8 + 3.5).exp().clamp(1, 55).long().tolist()
    asked = request_for([[3, 4, 5]] * 64, [(0, number) for number in range(64)], Sampling(max_new_tokens=55), caps=caps)
    said = NativeGenerator(graphs=True, max_rows=40).generate(tiny_model().eval(), asked)
    assert said.response_mask.sum(1).tolist() == caps and len(said.response_ids) == 64
    assert len(set(seen)) < len(seen) and {rows for rows, _ in seen} <= {8, 16, 24, 32, 40}
    plain = NativeGenerator(max_rows=40).generate(tiny_model().eval(), asked)
    assert torch.equal(said.response_ids, plain.response_ids)


#: Launches a layer and a decoding step, at most; frozen float32 weights under bf16-mixed are cast once, not in every step.
LAUNCHES = {("bf16-true", False): 21, ("bf16-mixed", False): 25, ("bf16-mixed", True): 25, ("32-true", False): 21}


@pytest.mark.parametrize(
    ("precision", "frozen"),
    [pytest.param(*case, marks=() if case == ("bf16-mixed", True) else pytest.mark.slow) for case in LAUNCHES],
)
def test_a_layer_launches_few_kernels_in_a_decoding_step(precision, frozen, gpu, tiny_policy):
    found = gpu(decoding.launches, tiny_policy, 2, precision, frozen)
    assert found["layer"] <= LAUNCHES[precision, frozen], found
    assert found["kernels"] <= {"efficient: mask", "efficient: float32"}  # no copy of a mask, no plain products

"""The simulated device refuses what CUDA refuses, takes what it takes, and counts what a host waits for."""

import pytest
import torch

from tests.checks import holds_only_for
from tests.simulated_gpu.counts import SEEN, phase


def tensors():
    return torch.tensor([1.0, 2.0, 3.0], device="cuda"), torch.ones(3)


REFUSED = {
    "sum of two devices": lambda there, here: there + here,
    "cat": lambda there, here: torch.cat([there, here]),
    "condition on the host": lambda there, here: torch.where(here > 0, there, 0.0),
    "scalar condition on the host": lambda there, here: torch.where(torch.tensor(True), there, there),
    "host indexed by the device": lambda there, here: here[there.long() - 1],
    "values on the host": lambda there, here: there.index_put_((torch.tensor([0, 1, 2]),), here),
    "written to the host": lambda there, here: torch.tensor(1.0).add_(there[0]),
    "numpy": lambda there, here: there.numpy(),
    "weights on the device": lambda there, here: torch.nn.functional.linear(here, there[None]),
    "gather": lambda there, here: there.gather(0, torch.tensor([0])),
    "generator of the host": lambda there, here: torch.randn(2, device="cuda", generator=torch.Generator()),
    "product of integers": lambda there, here: there.long()[None] @ there.long()[:, None],
    "pinned memory of the device": lambda there, here: there.pin_memory(),
    "wait while a graph is captured": lambda there, here: captured(lambda: there.sum().item()),
}  # fmt: skip


def captured(step):
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph


def refuses(name):
    there, here = tensors()
    try:
        REFUSED[name](there, here)
    except (RuntimeError, TypeError):
        return True
    return False


@pytest.mark.parametrize("name", REFUSED)
def test_it_refuses_what_cuda_refuses(name, gpu):
    assert gpu(refuses, name)


def sums_are_refused_when_deterministic():
    there, _ = tensors()
    there.cumsum(0)
    torch.use_deterministic_algorithms(True)
    try:
        there.long().cumsum(0)
        there.cumsum(0)
    except RuntimeError as error:
        return "deterministic" in str(error)
    finally:
        torch.use_deterministic_algorithms(False)
    return False


def test_a_running_sum_of_floats_has_no_deterministic_kernel(gpu):
    assert gpu(sums_are_refused_when_deterministic)


def what_it_takes():
    there, _ = tensors()
    found = {
        "scalar of the host": (there + torch.tensor(2.0)).tolist() == [3, 4, 5],
        "index of the host": there[torch.tensor([0])].is_cuda,
        "new tensors": there.new_zeros(2).is_cuda and torch.arange(3, device="cuda").tolist() == [0, 1, 2],
        "back and forth": torch.equal(there.cpu().to("cuda").cpu(), torch.tensor([1.0, 2.0, 3.0])),
    }
    with torch.inference_mode():
        found["inference"] = not (there * 2).cpu().is_cuda and (there * 2).is_cuda
    layer = torch.nn.Linear(3, 2).to("cuda")
    expected = torch.nn.functional.linear(torch.tensor([1.0, 2, 3]), layer.weight.elem, layer.bias.elem)
    found["a layer"] = torch.equal(layer(there).cpu(), expected)
    with torch.autocast("cuda", torch.bfloat16):
        found["autocast"] = layer(there).dtype == torch.bfloat16 and (there * 2).dtype == torch.float32
    layer(there).sum().backward()
    found["gradients"] = layer.weight.grad.is_cuda and layer.weight.grad[0].tolist() == [1, 2, 3]
    return found


def test_it_takes_what_cuda_takes(gpu):
    found = gpu(what_it_takes)
    assert all(found.values()), found


#: Steps, and how many waits CUDA has in them.
WAITS = {
    "item": (lambda there, here: there.sum().item(), 1),
    "branch": (lambda there, here: bool((there > 0).all()), 1),
    "tolist": (lambda there, here: there.tolist(), 1),
    "to the host": (lambda there, here: there.cpu(), 1),
    "from the host": (lambda there, here: here.to("cuda"), 1),
    "pageable, though not blocking": (lambda there, here: here.to("cuda", non_blocking=True), 1),
    "pinned, but blocking": (lambda there, here: here.pin_memory().to("cuda"), 1),
    "pinned and not blocking": (lambda there, here: here.pin_memory().to("cuda", non_blocking=True), 0),
    "a view of pinned memory": (lambda there, here: here.pin_memory()[1:].to("cuda", non_blocking=True), 0),
    "mask as an index": (lambda there, here: there[there > 1], 1),
    "nonzero": (lambda there, here: there.nonzero(), 1),
    "index of the host": (lambda there, here: there[torch.tensor([0])], 1),
    "index of the device": (lambda there, here: there[torch.arange(2, device="cuda")], 0),
    "arithmetic": (lambda there, here: (there * 2 + 1).softmax(0).cumsum(0), 0),
    "repeats of the device": (lambda there, here: there.repeat_interleave(there.long()), 1),
    "a tensor of numbers": (lambda there, here: torch.tensor([1, 2], device="cuda"), 1),
}


def waits(name):
    there, here = tensors()
    SEEN.clear()
    with phase(name):
        WAITS[name][0](there, here)
    return SEEN.waits_in(name)


@pytest.mark.parametrize("name", WAITS)
def test_waits_of_the_host_are_counted(name, gpu):
    assert gpu(waits, name) == WAITS[name][1]


def read(kind, dtype, shared):
    """Attention on the device and on the CPU, with gradients."""
    torch.manual_seed(0)
    keys, heads = (8 if kind == "aligned mask" else 6), (2 if shared else 4)
    sizes = [(2, 4, 5, 8), (2, heads, keys, 8), (2, heads, keys, 8)]
    plain = [torch.randn(size, dtype=dtype).requires_grad_() for size in sizes]
    moved = [one.detach().to("cuda").requires_grad_() for one in plain]
    mask = (
        None if kind == "whole" else torch.zeros(2, 1, 5, keys).masked_fill(torch.rand(2, 1, 5, keys) < 0.3, -torch.inf)
    )
    results = []
    SEEN.clear()
    for given in (plain, moved):
        given_mask = None if mask is None else mask.to(dtype).to(given[0].device)
        out = torch.nn.functional.scaled_dot_product_attention(*given, given_mask, enable_gqa=shared)
        out.float().square().sum().backward()
        results.append([out.detach().cpu(), *(one.grad.cpu() for one in given)])
    ((_, kernel, why),) = SEEN.attention
    return kernel, why, max(float((a - b).abs().max()) for a, b in zip(*results, strict=True))


KERNELS = {
    ("whole", "float32", False): ("efficient", "float32"),
    ("whole", "bfloat16", False): ("flash", ""),
    ("whole", "bfloat16", True): ("flash", ""),
    ("aligned mask", "bfloat16", False): ("efficient", "mask"),
    ("mask", "bfloat16", False): ("efficient", "mask; mask copied to be aligned"),
    ("mask", "float32", True): ("math", "float32; grouped heads"),
}


@pytest.mark.parametrize("case", KERNELS, ids=str)
def test_attention_takes_cudas_kernel_and_computes_the_same(case, gpu):
    kind, dtype, shared = case
    kernel, why, difference = gpu(read, kind, getattr(torch, dtype), shared)
    assert (kernel, why) == KERNELS[case]
    assert difference < (1e-5 if dtype == "float32" else 0.1)


def replayed():
    state, seen = torch.zeros(3, device="cuda"), []

    def step():
        state.add_(1)
        table = torch.cat([state, state])
        seen[:] = [table.view(2, 3).sum(0)]

    graph = captured(step)
    SEEN.clear()
    for _ in range(3):
        graph.replay()
    return SEEN.launches_in("other"), seen[0].tolist()


def test_a_graph_is_one_launch_and_runs_on_its_memory(gpu):
    assert gpu(replayed) == (3, [6, 6, 6])


class Blind(type(SEEN)):
    """Counts no copy."""

    def wait(self, kind, operation):
        if "host" not in kind:
            super().wait(kind, operation)


def copies(kind):
    from tests.simulated_gpu import rules

    counts, rules.SEEN = rules.SEEN, kind()
    try:
        rules.count(
            torch.ops.aten._to_copy.default, "_to_copy", (), {"device": "cuda"}, [], [torch.ones(1)], lambda one: False
        )
        assert sum(rules.SEEN.waits.values()) == 1
    finally:
        rules.SEEN = counts


@holds_only_for(type(SEEN), blind=Blind)
def test_a_copy_from_the_host_is_a_wait(kind):
    copies(kind)

"""How often the host may wait for a GPU, and how many kernels it may launch, on the simulated device.

What was reached stands here; docs/inside/gpu.md has what it was before.
"""

import unittest.mock

import pytest
import torch

from rl_lightning.models import blocks
from rl_lightning.travel import carried, table_carried
from tests.simulated_gpu import runs
from tests.simulated_gpu.counts import SEEN, phase

#: Waits in a microbatch that ends its step, with backward pass, clipping, optimizer and loggers; and those of the whole first run, in
#: which each model is asked once whether its head is last.
STEP, ONCE = 2, 1

#: Waits of a rollout beside generation and the scoring passes, and of each scoring pass.
ROLLOUT, PASS = 2, 1


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "grpo" else pytest.mark.slow)
        for name in ("sft", "dpo", "reward model", "grpo", "dapo", "ppo", "ppo, shared critic", "grpo, lora")
    ],
)
def test_the_host_waits_seldom_in_a_microbatch(name, gpu, tiny_policy, tmp_path):
    found = gpu(runs.waits, name, tiny_policy, tmp_path)
    # A step of several microbatches waits no oftener than one: a microbatch that ends no step waits for nothing.
    assert found["microbatches"] and found["microbatch"] <= STEP * found["microbatches"] + ONCE, found["places"]
    assert found["collect"] <= ROLLOUT * found["rollouts"] + PASS * found["passes"], found["places"]
    assert found["score"] <= 2 * ONCE, found["places"]


def calls(prompts: int, answers: int) -> tuple[int, int]:
    """Return how many blocks, each a call of the attention kernel, a packed row has on a GPU and on a CPU."""
    generator = torch.Generator().manual_seed(0)
    trunks = torch.randint(100, 400, (prompts,), generator=generator).tolist()
    # Log-normal lengths, as those of answers are.
    own = (torch.randn(prompts * answers, generator=generator) * 0.7 + 4.9).exp().clamp(1, 1024).long().tolist()
    owners = [number // answers for number in range(prompts * answers)]
    return tuple(
        len(blocks.laid_out(trunks + own, [True] * prompts, owners, torch.device(kind))[0]) for kind in ("cuda", "cpu")
    )


def test_a_packed_row_takes_few_calls_of_the_attention_kernel():
    on_gpu, on_cpu = calls(32, 8)
    assert on_gpu <= 12 < on_cpu


def one_copy(move) -> None:
    """A batch travels in one copy, and the host does not wait for it."""
    given = [torch.arange(5), torch.tensor([[True, False]]), torch.randn(3, 2, dtype=torch.float64), torch.tensor(2.5)]
    SEEN.clear()
    moved = move(given, "cuda")
    copies = sum(count for (_, name), count in SEEN.kernels.items() if name in ("_to_copy", "copy_"))
    assert SEEN.waits_in("other") == 0 and copies == 1
    home = carried(moved, "cpu")
    assert SEEN.waits_in("other") == 1
    assert all(torch.equal(one, other) and one.dtype == other.dtype for one, other in zip(given, home, strict=True))


def each_alone(tensors, device):
    return [one.to(device) for one in tensors]


def fails(move) -> bool:
    try:
        one_copy(move)
    except AssertionError:
        return True
    return False


def test_a_batch_travels_in_one_pinned_copy(gpu):
    gpu(one_copy, carried)
    assert gpu(fails, each_alone)


def masks(filled: int):
    """A mask of branches has rows of a multiple of 8 numbers on a GPU."""
    from tests.simulated_gpu.attention import is_aligned

    blocks._MASK_ALIGNED, kept = filled, blocks._MASK_ALIGNED
    try:
        block = blocks.Block(0, 2, 5, seen=6)
        block.settle(*carried([torch.tensor([0, 0]), torch.tensor([6, 4])], "cuda"))
        mask = block.mask(torch.bfloat16)
    finally:
        blocks._MASK_ALIGNED = kept
    plain = blocks.Block(0, 2, 5, seen=6)
    plain.settle(torch.tensor([0, 0]), torch.tensor([6, 4]))
    return is_aligned(mask), torch.equal(mask.cpu(), plain.mask(torch.bfloat16))


@pytest.mark.parametrize(("filled", "aligned"), [(8, True), (1, False)])
def test_masks_have_strides_that_the_kernel_takes(filled, aligned, gpu):
    assert gpu(masks, filled) == (aligned, True)


def packed_under_autocast(kept: bool):
    """Return which attention kernels a packed pass takes under Lightning's mixed precision, and why."""
    from lightning.pytorch.plugins.precision import MixedPrecision

    from rl_lightning.models import packing
    from rl_lightning.models.forward import read_responses
    from rl_lightning.models.packed_attention import enable_packing
    from rl_lightning.types import Rows
    from tests.tiny import tiny_model

    model = tiny_model()
    enable_packing(model)
    ids = torch.randint(3, 18, (4, 30))
    ids[:, :12] = ids[:1, :12]
    real = torch.ones(4, 30, dtype=torch.bool)
    rows = table_carried(Rows(ids, real, real[:, 12:].clone(), torch.zeros(4, dtype=torch.long), 1.0), "cuda")
    read_in = packing._read_in
    packing._read_in = read_in if kept else lambda query: query.dtype
    try:
        SEEN.clear()
        with phase("packed"), MixedPrecision("bf16-mixed", "cuda").forward_context():
            read_responses(model.to("cuda"), rows)
    finally:
        packing._read_in = read_in
    return {f"{kernel}: {why}" for (where, kernel, why), _ in SEEN.attention.items() if where == "packed" and why}


def test_a_packed_pass_copies_no_mask_under_autocast(gpu):
    assert gpu(packed_under_autocast, True) == {"efficient: mask"}
    assert gpu(packed_under_autocast, False) == {"efficient: mask; mask copied to be aligned"}


def constants():
    """What follows from the simulated device: 80 GiB, of which 70 are free."""
    from rl_lightning.generation.room import room_for
    from rl_lightning.generation.vllm_engine import free_share
    from rl_lightning.models.head import logits_at_once
    from tests.tiny import tiny_model

    device, model = torch.device("cuda", 0), tiny_model()
    cached = 2 * 2 * 2 * 8 * 4  # keys and values of 2 layers, 2 heads of 8 numbers of 4 bytes
    room = room_for(model.to(device))
    shares = [(room * cached) / (70 << 30)]
    free, of = torch.cuda.mem_get_info(device)
    for left in (free // 1024, 1024, 100):  # few tokens fit, one, none
        with unittest.mock.patch("torch.cuda.mem_get_info", lambda _, left=left: (left, of)):
            shares.append(room_for(model) * cached / left)
    return logits_at_once(device), room, shares, free_share(device)


def test_constants_follow_from_the_device(gpu):
    logits, room, (share, *shares), engine = gpu(constants)
    assert 0.25 < shares[0] <= 0.5 and shares[1:] == [0.5, 0]
    assert logits == 1 << 28 and logits * 4 <= (80 << 30) / 64
    assert room & (room - 1) == 0 and 0.25 < share <= 0.5
    assert engine == pytest.approx(0.95 * 70 / 80, abs=1e-3)
